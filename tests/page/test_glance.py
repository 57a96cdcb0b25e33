"""Patterns at a glance, words where they are used, addresses that keep what is shown, and everything in one file."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.page import synthetic

ROOT = Path(__file__).parents[2]
WORDS = json.loads((ROOT / "web" / "src" / "words.json").read_text())


@pytest.fixture(scope="module")
def small():
    return synthetic(2, 6, 48)


def pinned(page):
    return [one.split()[0] for one in page.locator(".beside h3").all_inner_texts()]


def notes(page):
    return page.locator(".beside .note").all_inner_texts()


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), pytest.param(820, True, marks=pytest.mark.soak), (390, True)]
)
def test_heads_are_seen_found_and_put_side_by_side_under_one_cursor(show, small, width, dark):
    opened = show(small, width=width, dark=dark)
    page = opened.page
    page.locator("#patterns").scroll_into_view_if_needed()
    assert page.locator(".thumb-row canvas").count() == 2
    # Found by name, and put beside the others by Enter; a fifth takes the place of the first.
    before = pinned(page)
    assert 1 <= len(before) <= 2
    box = page.get_by_label("Find a head")
    for head in ("0.1", "L0H2", "L1H0", "L1H5"):
        box.fill(head)
        assert "1 found" in page.locator(".glance [role=status]").inner_text()
        box.press("Enter")
    assert pinned(page) == ["L0H1", "L0H2", "L1H0", "L1H5"]
    box.fill("no such role")
    assert page.locator(".glance [role=status]").inner_text() == "none found"
    box.fill("")
    # One cursor: a hover over one moves all, a click holds it, and a hover then moves none.
    page.locator(".beside canvas").first.scroll_into_view_if_needed()
    side = page.locator(".beside canvas").first.bounding_box()["width"] / 48
    page.locator(".beside canvas").first.hover(position={"x": side * 3.5, "y": side * 20.5})
    page.wait_for_function(
        "[...document.querySelectorAll('.beside .note')].every(n => n.textContent.includes('at 20'))"
    )
    assert all("at 20, it puts" in one and "at 3." in one for one in notes(page))
    page.locator(".beside canvas").first.click(position={"x": side * 3.5, "y": side * 20.5})
    page.locator(".beside canvas").nth(1).hover(position={"x": side * 5.5, "y": side * 30.5})
    assert all("at 20" in one for one in notes(page))
    # From the other end: the value is the same, the question another.
    page.locator("#patterns label:has(input[value=to])").click()
    assert all(re.match(r"To .* at 3 it looks most from .* at 20: ", one) for one in notes(page))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # All of that is in the address, which opens the same in another window.
    address = page.url
    assert all(part in address for part in ("pins=L0H1+L0H2+L1H0+L1H5", "on=20+3", "way=to"))
    other = page.context.new_page()
    other.goto(address)
    other.wait_for_selector(".beside canvas")
    assert (pinned(other), notes(other)) == (pinned(page), notes(page))
    opened.assert_quiet()


def test_a_thumbnail_is_its_pattern(show, made):
    # L0H4 is the previous-token head: its dark places are beside the diagonal. 49 tokens in 84 dots and more.
    opened = show(made)
    page = opened.page
    page.locator("#patterns").scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    row = page.locator(".thumb-row canvas").first
    image = np.asarray(Image.open(io.BytesIO(row.screenshot())).convert("L")).astype(float)
    step = image.shape[1] / 6
    thumb = image[:, round(4 * step) :]
    down = np.arange(8, len(thumb) - 3)
    token = len(thumb) / len(made["example"]["tokens"])  # dots a token takes
    near = thumb[down, np.round(down - token).astype(int)].mean()
    far = thumb[down, down // 2].mean()
    assert far - near > 40
    row.click(position={"x": 2.5 * step, "y": 20})
    assert pinned(page)[-1] == "L0H2"
    opened.assert_quiet()


def test_a_word_is_explained_on_hover_and_focus(show, small):
    opened = show(small)
    page = opened.page
    word = page.locator(".roles th .word").filter(has_text="stripe")
    tip = word.locator(".tip")
    assert not tip.is_visible()
    word.hover()
    assert tip.is_visible()
    assert tip.inner_text() == WORDS["stripe"]
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    word.locator("button").focus()
    assert tip.is_visible()
    page.keyboard.press("Escape")
    assert not tip.is_visible()
    used = set(page.locator(".word button").all_inner_texts())
    assert {"stripe", "nats", "copying", "eigenvalue score", "Restored", "control", "q"} <= used
    opened.assert_quiet()


def test_an_address_opens_a_head_and_a_role(show, small, tmp_path):
    opened = show(small)
    page = opened.page
    page.locator("label:has(input[value=induction])").click()
    page.locator("#head-map rect[data-head=L0H3]").click()
    page.wait_for_function("location.hash.includes('head=L0H3')")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("#head-map svg")
    assert other.locator("#card-title").inner_text() == "L0H3"
    assert other.locator("input[value=induction]").is_checked()
    other.goto("about:blank")
    other.goto(page.url.split("#")[0] + "#head=L9H9&role=none&on=900+3&pins=L0H1+L7H7")
    other.wait_for_selector("#head-map svg")  # what is not in the file is passed over
    assert pinned(other) == ["L0H1"]
    opened.assert_quiet()


def test_everything_comes_in_one_archive(show, small):
    opened = show(small)
    with opened.page.expect_download() as waiting:
        opened.page.get_by_role("button", name="Download everything").click()
    assert waiting.value.suggested_filename == "made-up.zip"
    archive = zipfile.ZipFile(waiting.value.path())
    assert archive.testzip() is None  # every checksum holds
    names = archive.namelist()
    for name in ("scan", "verify", "circuit"):
        assert json.loads(archive.read(f"{name}.json")) == json.loads(json.dumps(small[name]))
    assert json.loads(archive.read("report.json"))["schema"] == small["schema"]
    assert {"figures/head-map.csv", "figures/head-map.svg", "figures/circuit.svg", "figures/token-loss.csv"} <= set(
        names
    )
    assert archive.read("command.txt").decode().strip() == small["provenance"]["command"]
    assert archive.read("cite.bib").decode().startswith("@software{headscope,")
    opened.assert_quiet()


def test_a_saved_pattern_has_a_title_tokens_and_a_colour_bar(show, small):
    opened = show(small)
    with opened.page.expect_download() as waiting:
        opened.page.locator(".card").get_by_role("button", name=re.compile("save as SVG")).first.click()
    svg = waiting.value.path().read_text()
    head = opened.page.locator("#card-title").inner_text()
    assert f">What {head} attends to, on one prompt</text>" in svg
    assert svg.count('text-anchor="end"') >= 2 * len(small["example"]["tokens"])
    assert all(part in svg for part in ('id="ramp"', ">attention 0</text>"))
    opened.assert_quiet()


def test_the_glossary_says_what_the_page_says():
    text = (ROOT / "docs" / "glossary.md").read_text()
    said = dict(re.findall(r"^## (.+)\n\n(.+?)\n(?:\n|$)", text, flags=re.MULTILINE))
    assert {word: " ".join(said[word].split()) for word in WORDS} == WORDS
