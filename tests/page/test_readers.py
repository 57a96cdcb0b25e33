"""The page for whoever reads it with other tools: axe-core's rules, a narrow window, and paper."""

from __future__ import annotations

import io

import pypdf
import pytest

from benchmarks.page import synthetic
from headscope.heads import HeadId
from tests.axe import violations


def test_no_rule_of_axe_is_broken(show):
    opened = show(synthetic(2, 6, 48))
    opened.page.locator("label:has(input[value=effect])").click()
    opened.page.locator("summary").first.click()
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)
        assert violations(opened.page) == [], scheme


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_all_and_says_what_scrolls(show, dark):
    opened = show(synthetic(2, 6, 48), width=390, dark=dark)
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    silent = """[...document.querySelectorAll('.scroll')].filter((one) =>
      one.scrollWidth > one.clientWidth + 1 && !one.nextElementSibling?.textContent.startsWith('Scrolls sideways'))
      .map((one) => one.getAttribute('aria-label'))"""
    page.wait_for_selector(".scrolls")
    assert page.evaluate(silent) == []
    opened.assert_quiet()


def test_paper_holds_every_head_and_path_and_no_button(show):
    document = synthetic(4, 8, 48)
    assert len(document["circuit"]["edges"]) > 12, "more than the page lists at once"
    opened = show(document, dark=True)
    printed = pypdf.PdfReader(io.BytesIO(opened.page.pdf(format="A4")))
    text = " ".join(" ".join(one.extract_text() for one in printed.pages).split())
    listed = text[text.index("Every head: verdict") :]
    for one in document["verify"]["heads"]:
        head = HeadId(one["layer"], one["head"])
        label = one["verdict"].replace("_", " ") if one["verdict"] != "none" else "no role"
        assert f"{head} {label}" in listed
    told = text[text.index("told by, with") :].replace(" ", "")
    for edge in document["circuit"]["edges"]:
        sender, receiver = (HeadId(edge[end]["layer"], edge[end]["head"]) for end in ("sender", "receiver"))
        assert (
            f"{receiver}{sender}throughitskey:{edge['share']:.0%}[" in told
        )  # spaces between cells are the reader's guess
    for button in ("SVG", "CSV", "JSON", "Copy", "Another head", "The numbers", "Scrolls"):
        assert button not in text
    assert printed.pages[0].mediabox.width == pytest.approx(595, abs=2)


def test_paper_is_white_in_a_dark_room(show):
    opened = show(synthetic(2, 6, 48), dark=True)
    page = opened.page
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.wait_for_selector(".every")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 36, 48)"
    assert page.locator("#circuit .node rect").first.get_attribute("fill") == "#eff3f9"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.wait_for_selector(".every", state="detached")


def test_heads_that_matter_come_before_the_map_by_effect(show):
    document = synthetic(2, 6, 48)
    heads = document["verify"]["heads"]
    heads[2].update(verdict="matters", delta_loss_nats={"mean": 6.4, "ci95": [5.6, 6.6]})
    opened = show(document)
    page = opened.page
    assert page.locator("#heads h2").inner_text() == "Heads that matter"
    rows = page.locator(".roles tbody tr").all_inner_texts()
    assert rows[0].startswith("L0H2")
    assert "matters, role unknown" in rows[0]
    named = [one for one in heads if one["verdict"] != "none"]
    sizes = sorted(((abs(one["delta_loss_nats"]["mean"]), one) for one in named), key=lambda one: -one[0])
    assert [one.split()[0] for one in rows] == [f"L{one['layer']}H{one['head']}" for _, one in sizes]
    assert page.evaluate(
        "document.querySelector('.roles').compareDocumentPosition(document.querySelector('#head-map')) & 4"
    )
    opened.assert_quiet()
