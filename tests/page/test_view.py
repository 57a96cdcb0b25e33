"""The page in a notebook's cell: a frame that works with no network, and is closed off from the notebook."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

import headscope as hs
from headscope.errors import ArgumentError
from headscope.page.view import PageView


def test_a_cell_shows_patterns_roles_and_a_heads_card(window, made):
    shown = PageView(document=made, height=600)
    console, asked = [], []
    page = window.page(
        width=1000,
        dark=False,
        console=lambda one: console.append(one.text),
        pageerror=lambda one: console.append(str(one)),
        request=lambda one: asked.append(one.url),
    )
    page.set_content(f"<h1>A notebook</h1>{shown._repr_html_()}")
    frame = page.frame_locator("iframe")
    frame.locator("#made h2").wait_for()
    assert frame.locator("canvas.pattern").count() >= 1
    frame.locator("#head-map rect[data-head=L0H4]").click()
    title = frame.locator("#card-title")
    title.get_by_text("L0H4").wait_for()  # also where the address cannot hold the state
    expect(title).to_be_focused()  # the frame has scrolled to it: what is clicked next stays where it is
    # The label is what is seen; a click on it waits until the page stands still.
    frame.locator("label:has(input[value=previous_token])").click()
    expect(frame.locator("#head-map h3")).to_contain_text("previous token")
    frame.get_by_label("Find a head").fill("L1H2")
    frame.get_by_label("Find a head").press("Enter")
    assert "L1H2" in " ".join(frame.locator(".beside h3").all_inner_texts())
    assert page.evaluate("document.querySelector('iframe').contentDocument") is None, "a sandbox"
    assert (console, [one for one in asked if not one.startswith("about:")]) == ([], [])


def test_it_is_said_in_a_line_and_holds_what_was_measured(results):
    given = {"scan": results.scan, "verification": results.verification, "circuit": results.circuit}
    shown = hs.view(results.model, **given, height=300)
    assert repr(shown) == "PageView(demo: 2 layers of 6 heads)"
    assert shown.document["scan"] == results.scan.to_dict()
    html = shown._repr_html_()
    assert "height:300px" in html
    assert len(re.findall("<", html)) == 2, "the page stands in an attribute"
    with pytest.raises(ArgumentError, match="at least 200 pixels"):
        hs.view(results.model, **given, height=20)
