"""A comparison on a report's page: one head in both models, drawn side by side under one cursor."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
from playwright.sync_api import expect

import headscope as hs
from headscope.evidence.compare.result import HeadPatterns, PairPatterns, PromptToken
from headscope.heads import HeadId

WORDS = ("start", " b", " c", "<img src=x onerror='window.hurt = 1'>", " b", " c")


def on(*keys: int) -> str:
    """A pattern whose queries look at these keys alone."""
    rows = [row for query, key in enumerate(keys) for row in np.eye(len(keys))[key][: query + 1]]
    return base64.b64encode(np.asarray(rows, np.float64).astype(np.uint8) * np.uint8(255)).decode()


def test_one_head_in_both_models_is_read_under_one_cursor(results: Any, document: dict[str, Any], show: Any) -> None:
    found = hs.compare(results.model, results.model, n_prompts=2, period=6)
    heads = (
        HeadPatterns(head=HeadId(0, 1), counterpart=HeadId(0, 2), a=on(0, 0, 1, 2, 2, 3), b=on(0, 1, 2, 3, 4, 5)),
        HeadPatterns(head=HeadId(1, 1), counterpart=HeadId(1, 1), a=on(0, 0, 0, 0, 0, 0), b=on(0, 0, 1, 2, 3, 4)),
    )
    tokens = tuple(PromptToken(id=WORDS.index(word), text=word) for word in WORDS)
    pair = replace(found.pairs[0], patterns=PairPatterns(tokens=tokens, heads=heads))
    document["results"] = [{"kind": "compare", **replace(found, pairs=(pair,)).to_dict()}]
    opened = show(document)
    both = opened.page.locator("#compare .both")
    expect(both.locator("canvas.pattern")).to_have_count(2)
    # Where the last token is read, A's head looks at 3 and B's at 5.
    first, second = both.locator(".note").nth(0), both.locator(".note").nth(1)
    expect(first).to_contain_text("at 5, it puts 1.00 on")
    expect(first).to_contain_text("at 3.")
    expect(second).to_contain_text("it puts 1.00 on c at 5.")
    expect(both).to_contain_text("L0H2 of B")
    # One cursor: arrows in the first pattern move the second too.
    both.locator("canvas.pattern").first.focus()
    opened.page.keyboard.press("ArrowUp")
    expect(first).to_contain_text("at 4, it puts 1.00 on c at 2.")
    expect(second).to_contain_text("at 4, it puts 1.00 on b at 4.")
    both.get_by_role("button", name="L1H1").click()
    expect(both).to_contain_text("L1H1 of B")
    expect(first).to_contain_text("it puts 1.00 on start at 0.")
    assert opened.page.evaluate("window.hurt") is None
    opened.assert_quiet()
