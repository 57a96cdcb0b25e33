"""The page's parts in use at every width and in both colours: one page, opened once, resized and recoloured.

    1 heads that matter come first      2 patterns, pins, one cursor     4 words explained
    5 a head's address, the archive     7 a null result                  8 axe-core's rules

The parts themselves are tested one by one at 1,280 px beside this file; the live page's first screen (3) is in
`tests/explore/test_first_screen.py`, paper (6) in `test_readers.py`, the command's options (9) in `tests/cli`.
"""

from __future__ import annotations

import zipfile

import pytest
from playwright.sync_api import expect

from benchmarks.page import synthetic
from headscope.heads import HeadId
from tests.axe import violations
from tests.widths import EVERYWHERE, turned


@pytest.fixture(scope="module")
def small():
    return synthetic(2, 6, 48)


def wider_than(page, width):
    return page.evaluate("document.documentElement.scrollWidth") > width


def test_every_part_works_at_every_width_and_in_both_colours(show, small):
    opened = show(small)
    page = opened.page
    before = None
    for turn, (width, scheme) in enumerate(EVERYWHERE):
        turned(page, width, scheme)
        where = f"{width} px, {scheme}"
        assert not wider_than(page, width), where
        # 1: the table is above or left of the map, and a head in it opens its card.
        table, heads = page.locator(".roles").bounding_box(), page.locator("#head-map").bounding_box()
        assert table["y"] < heads["y"] or table["x"] + 1 < heads["x"], where
        assert table["width"] > 250, where
        head = page.locator(".roles tbody button").nth(turn % 2)
        head.click()
        name = head.inner_text()
        assert page.locator("#card-title").inner_text() == name, where
        expect(page.locator("#card-title")).to_be_focused()
        # 5: the address says which head that is.
        page.wait_for_function(f"location.hash.includes('head={name}')")
        # 2: every pattern has a picture in the theme's colours, two stand side by side, and one cursor moves both.
        thumbs = page.locator(".thumb-row canvas")
        assert thumbs.count() == 2
        thumbs.first.scroll_into_view_if_needed()
        page.wait_for_function(
            "(before) => document.querySelector('.thumb-row canvas').toDataURL() !== before",
            arg=before if scheme == "dark" else None,
        )
        before = page.evaluate("document.querySelector('.thumb-row canvas').toDataURL()")
        first = page.locator(".beside canvas").first
        first.scroll_into_view_if_needed()
        side = first.bounding_box()["width"] / 48
        assert side >= 4, where
        query = 20 + turn
        first.hover(position={"x": side * 3.5, "y": side * (query + 0.5)})
        page.wait_for_function(
            f"[...document.querySelectorAll('.beside .note')].every(n => n.textContent.includes('at {query}, it puts'))"
        )
        # 4: a word's definition is within the window.
        word = page.locator(".roles th .word").filter(has_text="stripe")
        word.locator("button").focus()
        tip = word.locator(".tip")
        tip.wait_for()
        box = tip.bounding_box()
        assert box["x"] >= 0, where
        assert box["x"] + box["width"] <= width, where
        page.keyboard.press("Escape")
        # 5: everything comes in one archive, with how to cite it.
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download everything").click()
        assert "cite.bib" in zipfile.ZipFile(waiting.value.path()).namelist(), where
    opened.assert_quiet()


def test_a_null_result_is_one_everywhere(show, small):
    document = small | {"verify": small["verify"] | {"heads": [dict(one) for one in small["verify"]["heads"]]}}
    for one in document["verify"]["heads"]:
        one["verdict"] = "none"
    document["circuit"] = small["circuit"] | {"receivers": [], "edges": []}
    opened = show(document)
    page = opened.page
    for width, scheme in EVERYWHERE:
        turned(page, width, scheme)
        assert not wider_than(page, width), (width, scheme)
        assert "best candidates" in page.locator("#heads").inner_text()
        rows = page.locator("#heads .roles tbody tr")
        assert rows.count() == 5
        assert all(HeadId.parse(one.split()[0]) for one in rows.all_inner_texts())
        assert "chance" in page.locator("#heads .roles thead").inner_text()
        assert page.locator("#circuit-part").count() == 0
    opened.assert_quiet()


@pytest.mark.parametrize("width", [390, pytest.param(820, marks=pytest.mark.soak)])
def test_no_rule_of_axe_is_broken_where_it_is_narrow(show, small, width):
    # Contrast does not depend on the width: `test_readers.py` checks it, in both colours.
    opened = show(small, width=width)
    assert violations(opened.page, contrast=False) == []
