"""A clean and a corrupt prompt, one above the other, and where one head looks from the same query in each.

    corrupt_pair_picture    an SVG without scripts: tokens in boxes, the changed one marked, an arrow to each key

An arrow's width is the attention that it shows; keys that get less than 0.05 have none. The key that an induction head
looks to has an arrow in both prompts, dashed where the attention is gone.

Cost: two passes over a short prompt. One pair shows the idea; `headscope.trace_circuit` measures 24 of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.model.load import Model, Source, load
from headscope.model.patterns import patterns
from headscope.probes.corrupt import CorruptPair
from headscope.probes.probe import Tokens
from headscope.render.pattern import Picture, token_labels
from headscope.render.plain import markup as escape
from headscope.render.theme import GROUND, LIGHT

LEAST = 0.05
"""Attention that has an arrow."""
MOST_TOKENS = 32
"""Tokens that fit side by side and can still be read."""

_BOX, _GAP, _HIGH, _LEFT = 40, 4, 26, 12
_ARCS = 78
_TITLE = 34
_ROW = _TITLE + _ARCS + _HIGH + 30


def corrupt_pair_picture(model: Source, pair: CorruptPair, head: HeadId | str) -> Picture:
    """What a head attends to from the pair's query, in the clean prompt and in the corrupt one.

    Args:
        model: What `headscope.load` takes, or gives.
        pair: One of `headscope.probes.corrupt.corrupt_pairs`, of at most 32 tokens.
        head: Which, like `"L1H5"`.

    Raises:
        ArgumentError: a head that the model does not have, more tokens than fit, or a pair that differs in no token.
    """
    model = load(model)
    (chosen,) = model.named([head])
    if pair.changed is None:
        raise ArgumentError("The pair's two prompts are the same; make it with change='before_key'.")
    if len(pair.clean) > MOST_TOKENS:
        raise ArgumentError(
            f"{len(pair.clean)} tokens do not fit side by side; at most {MOST_TOKENS}. Use a shorter period."
        )
    rows = [
        _row(model, pair, chosen, name, tokens, index * _ROW)
        for index, (name, tokens) in enumerate((("clean", pair.clean), ("corrupt", pair.corrupt)))
    ]
    width = 2 * _LEFT + len(pair.clean) * (_BOX + _GAP)
    return Picture(
        svg=(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {2 * _ROW}" width="{width}" role="img" '
            f'style="{GROUND}" font-family="ui-monospace,monospace" font-size="11">{"".join(rows)}</svg>'
        ),
        title=f"attention of {chosen} in a clean prompt and a corrupt one",
    )


def _row(model: Model, pair: CorruptPair, head: HeadId, name: str, tokens: Tokens, top: int) -> str:
    """One prompt: its title, arrows from the query, boxes, and what each marked place is called."""
    found: dict[HeadId, Tensor] = {}
    patterns(model, torch.from_numpy(tokens)[None].to(model.device), found.__setitem__, [head])
    attention = [float(one) for one in found[head][0, pair.query].float().cpu()]
    base = top + _TITLE + _ARCS
    title = f"from the query, {head} puts {attention[pair.key]:.2f} of its attention on the key"
    parts = [
        f'<text x="{_LEFT}" y="{top + 17}" font-size="13" fill="{LIGHT.ink}"><tspan font-weight="600">{name}</tspan>: '
        f"{title}</text>"
    ]
    for key in sorted({pair.key, *(one for one in range(pair.query + 1) if attention[one] >= LEAST)}):
        parts.append(_arrow(pair, key, attention[key], base))
    names = {pair.changed: "changed" if name == "corrupt" else "= query", pair.key: "key", pair.query: "query"}
    for place, label in enumerate(token_labels(model, tokens)):
        left = _LEFT + place * (_BOX + _GAP)
        colour = LIGHT.mark if place == pair.changed else LIGHT.clean if place in names else LIGHT.line
        shown = label if len(label) <= 6 else f"{label[:5]}…"
        parts.append(
            f'<rect x="{left}" y="{base}" width="{_BOX}" height="{_HIGH}" rx="4" fill="{LIGHT.box}" stroke="{colour}" '
            f'stroke-width="{2 if place in names else 1}"/>'
            f'<text x="{left + _BOX / 2:.0f}" y="{base + 17}" text-anchor="middle" fill="{LIGHT.ink}">{escape(shown)}'
            f"<title>{escape(label)} at {place}: {attention[place] if place <= pair.query else 0:.2f}</title></text>"
        )
        if place in names:
            parts.append(
                f'<text x="{left + _BOX / 2:.0f}" y="{base + _HIGH + 14}" text-anchor="middle" font-weight="600" '
                f'fill="{colour}">{names[place]}</text>'
            )
    return "".join(parts)


def _arrow(pair: CorruptPair, key: int, weight: float, base: int) -> str:
    """From the query over the tokens between to one key; grey to any other than the induction head's."""
    start, end = (_LEFT + place * (_BOX + _GAP) + _BOX / 2 for place in (pair.query, key))
    wide = 1 + 5 * weight
    high = min(_ARCS, 24 + 0.16 * abs(start - end))
    colour = LIGHT.clean if key == pair.key else LIGHT.soft
    dashes = ' stroke-dasharray="4 4"' if weight < LEAST else ""
    tip = base - 4 - 1.5 * wide
    if key == pair.query:  # a loop above itself
        curve = f"M{start + 8:.0f} {base - 2}c10 -26 -26 -26 -14 {tip - base + 2:.0f}"
    else:
        over = base - 1.3 * high
        curve = f"M{start:.0f} {base - 2}C{start:.0f} {over:.0f} {end:.0f} {over:.0f} {end:.0f} {tip:.0f}"
    return (
        f'<path d="{curve}" fill="none" stroke="{colour}" stroke-width="{wide:.1f}"{dashes}/>'
        f'<path d="M{end:.0f} {base - 2}l{-2 - wide:.1f} {tip - base:.1f}h{4 + 2 * wide:.1f}z" fill="{colour}"/>'
        f'<text x="{end + 10:.0f}" y="{base - 14}" font-weight="600" fill="{colour}" stroke="{LIGHT.paper}" '
        f'stroke-width="3" paint-order="stroke">{weight:.2f}</text>'
    )
