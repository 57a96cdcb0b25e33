"""The live page at first sight: a prompt that shows induction, the head that shows it most, and a click that holds."""

from __future__ import annotations

import dataclasses

from headscope.explore.reading import Reader
from headscope.explore.starting import starts
from tests.explore.test_live import show, window  # noqa: F401  # the fixtures that open the page
from tests.widths import EVERYWHERE, turned


def test_it_shows_the_head_with_the_largest_stripe_on_the_text_and_a_click_holds(show, reader):  # noqa: F811
    opened = show(width=1280)
    page = opened.page
    first, _, drawn = starts(reader.model)

    def strongest(text):
        return str(max(reader.glance(text).heads, key=lambda one: one.stripe).head)

    head, chips = page.get_by_label("Head", exact=True), page.locator(".tokens .chip")
    assert page.locator(".examples button").count() == 3
    for turn, (width, scheme) in enumerate(EVERYWHERE):
        turned(page, width, scheme)
        where = f"{width} px, {scheme}"
        if turn:
            page.get_by_role("button", name=first.title).click()
            opened.settle()
        assert page.locator("textarea").input_value() == first.text, where
        assert head.input_value() == strongest(first.text), where
        page.get_by_role("button", name=drawn.title).click()
        opened.settle()
        assert page.locator("textarea").input_value() == drawn.text, where
        assert head.input_value() == strongest(drawn.text), where
        # A click holds the token: what is hovered after it changes no panel.
        chips.nth(16).click()
        opened.settle()
        note = page.locator("#note-yours").inner_text()
        assert "at 16, it puts" in note, where
        chips.nth(9).hover()
        opened.settle()
        assert page.locator("#note-yours").inner_text() == note, where
        beside = page.locator(".all-yours .beside .note").all_inner_texts()
        assert len(beside) >= 2, where
        assert all("at 16, it puts" in one for one in beside), where  # those side by side have the same cursor
        chips.nth(16).click()  # and again lets go of it
        chips.nth(9).hover()
        opened.settle()
        assert "at 9, it puts" in page.locator("#note-yours").inner_text(), where
        assert page.evaluate("document.documentElement.scrollWidth") <= width, where
    # The head that the reader chose stays, whatever is typed.
    head.select_option("L0H1")
    opened.type("b a b a b")
    assert head.input_value() == "L0H1"
    opened.assert_quiet()


def test_a_model_without_a_tokenizer_is_explored_by_ids(show, reader):  # noqa: F811
    opened = show(reader=Reader(dataclasses.replace(reader.model, tokenizer=None)))
    page = opened.page
    assert page.locator("textarea").input_value().startswith("ids: ")
    assert all(one.startswith("#") for one in page.locator(".tokens .chip").all_inner_texts())
    opened.type("12 30 44 12")
    assert page.locator(".tokens .chip").all_inner_texts() == ["#12", "#30", "#44", "#12"]
    page.locator(".tokens .chip").nth(3).click()
    opened.settle()
    assert "it puts" in page.locator("#note-yours").inner_text()
    opened.assert_quiet()
