"""The page in a browser: what a reader can do with it, and what no token can."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

import headscope.page.example as example_module
from headscope.page.html import page_html
from tests.widths import EVERYWHERE, turned

HOSTILE = [
    "</script><script>window.hurt = 1</script>",
    "<img src=x onerror='window.hurt = 2'>",
    "<!--<script>",
    "\ud800",  # half of a surrogate pair
    "\u202egnp.exe",  # right-to-left override
    "\u05e9\u05dc\u05d5\u05dd",
    "x" * 10_000,
    "\x00\x1b[31m",
    "\u2028\u2029",
    "=cmd|' /C calc'!A0",
    "{{7*7}}${7*7}",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "",
    "\n",
]


def saved(opened, button):
    with opened.page.expect_download() as waiting:
        opened.page.get_by_role("button", name=button).click()
    return waiting.value.suggested_filename, waiting.value.path().read_text()


def test_the_page_opens_from_disk_without_a_sound(show, made):
    opened = show(made)
    assert opened.page.locator(".finding .quoted p").inner_text() == made["finding"]["sentence"]
    assert opened.page.locator(".finding li").all_inner_texts() == list(made["finding"]["details"])
    assert opened.page.title() == "demo - headscope"
    opened.assert_quiet()


def test_nothing_is_wider_than_the_window(show, made):
    opened = show(made)
    page = opened.page
    for width, scheme in EVERYWHERE:
        turned(page, width, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ink, paper = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", one)[:3])) for one in (ink, paper)]
        assert (brightness[0] > brightness[1]) == (scheme == "dark")
    opened.assert_quiet()


def test_every_role_is_a_map(show, made):
    opened = show(made)
    page = opened.page
    cells = page.locator("#head-map rect[data-head]")
    assert cells.count() == 12
    before = [one.get_attribute("fill") for one in cells.all()]
    for mode in ("effect", *(one["name"] for one in made["scan"]["detectors"])):
        page.locator(f"label:has(input[value={mode}])").click()
        page.wait_for_function(
            "(before) => [...document.querySelectorAll('#head-map rect[data-head]')]"
            ".some((one, i) => one.getAttribute('fill') !== before[i])",
            arg=before,
        )
        after = [one.get_attribute("fill") for one in cells.all()]
        assert len(after) == 12
        before = after if mode != "induction" else []  # induction_recent is the same where there are two copies
        if mode == "previous_token":
            # Darker is more: L0H4 is the previous-token head.
            light = [sum(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in after]
            assert cells.nth(int(np.argmin(light))).get_attribute("data-head") == "L0H4"
    opened.assert_quiet()


def test_pointing_at_a_head_gives_its_interval(show, made):
    opened = show(made)
    opened.page.locator("label:has(input[value=induction])").click()
    opened.page.hover("#head-map rect[data-head=L1H1]")
    score = next(one for one in made["scan"]["heads"] if (one["layer"], one["head"]) == (1, 1))["scores"]["induction"]
    note = opened.page.locator("#map-note").inner_text()
    assert f"L1H1 induction: {score['mean']:.3f} [{score['ci95'][0]:.3f}, {score['ci95'][1]:.3f}]" in note
    assert f"by chance {score['chance']:.3f}" in note
    opened.assert_quiet()


def test_a_head_is_reached_and_opened_by_keyboard(show, made):
    opened = show(made)
    page = opened.page
    page.locator(".map").focus()
    for key in ("ArrowUp", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    start = page.locator("#card-title").inner_text()
    assert start in ("L1H0", "L1H1", "L1H5")
    wanted = f"L0H{min(5, int(start[-1]) + 4)}"
    assert page.locator("#map-note").inner_text().startswith(wanted)
    page.keyboard.press("Enter")
    assert page.locator("#card-title").inner_text() == wanted
    page.wait_for_function("document.activeElement.id === 'card-title'")
    opened.assert_quiet()


def test_a_card_says_all_that_is_known_of_a_head(show, made):
    opened = show(made)
    page = opened.page
    page.get_by_role("button", name="L1H1", exact=True).first.click()
    verdict = next(one for one in made["verify"]["heads"] if (one["layer"], one["head"]) == (1, 1))
    card = page.locator(".card")
    text = card.inner_text()
    assert verdict["verdict"] == "induction"
    assert all(reason in text for reason in verdict["reasons"])
    assert f"{verdict['delta_loss_nats']['mean']:+.3f}" in card.locator("#effects-L1H1 svg").text_content()
    assert "first copy (control)" in card.locator("#effects-L1H1 svg").text_content()
    assert "L0H4 carries" in text
    assert f"Direct copying {verdict['copying']['direct']['mean']:+.2f}" in text
    assert card.locator(".token-table").count() == 2
    # From one head to the one that feeds it.
    card.get_by_role("button", name="L0H4").first.click()
    assert page.locator("#card-title").inner_text() == "L0H4"
    assert "It feeds L1H" in page.locator(".card").inner_text()
    opened.assert_quiet()


@pytest.mark.parametrize("dark", [False, True])
def test_the_stripe_can_be_seen(show, made, dark):
    # The demo's induction heads put most of the second copy's attention on the stripe: there the canvas must differ
    # from paper far more than elsewhere below the diagonal, and on either side of it stands the coloured outline.
    opened = show(made, dark=dark)
    page = opened.page
    page.select_option(".choose select", "L1H1")
    page.wait_for_selector("#pattern-L1H1 canvas")
    page.mouse.move(0, 0)
    page.wait_for_timeout(100)
    png = page.evaluate("document.querySelector('canvas.pattern').toDataURL('image/png').split(',')[1]")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")).astype(int)
    tokens = len(made["example"]["tokens"])
    cell = len(image) // tokens
    middle = image[cell // 2 :: cell, cell // 2 :: cell].sum(-1).astype(float)
    (first, _), (start, end) = made["example"]["first"], made["example"]["second"]
    query = np.arange(start, end - 1)
    key = query - (start - first) + 1
    stripe = middle[query, key]
    others = middle[np.tril_indices(tokens)]
    assert abs(stripe.mean() - np.median(others)) > 150
    edges = image[query * cell + cell // 2, key * cell]
    assert (edges[:, 0] - edges[:, 2] > 60).mean() > 0.9  # orange: far more red than blue
    opened.assert_quiet()


def test_the_pattern_can_be_read_place_by_place(show, made):
    opened = show(made)
    page = opened.page
    page.select_option(".choose select", "L1H1")
    page.locator("#pattern-L1H1 canvas").focus()
    start, _ = made["example"]["second"]
    first, _ = made["example"]["first"]
    note = page.locator("#note-L1H1")
    query = int(re.search(r"at (\d+), it puts", note.inner_text())[1])
    page.keyboard.press("ArrowUp")
    page.wait_for_function(
        "(at) => document.querySelector('#note-L1H1').textContent.includes(at)", arg=f"at {query - 1}"
    )
    found = re.search(r"it puts ([\d.]+) on .* at (\d+)\.", note.inner_text())
    assert int(found[2]) == query - 1 - (start - first) + 1
    assert float(found[1]) > 0.4
    opened.assert_quiet()


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Every head by verdict", "head-map"),
        ("What L1H1 attends to, on one prompt", "pattern-L1H1"),
        ("Loss without L1H1, minus with it", "effects-L1H1"),
        ("Loss of each token, on one prompt", "token-loss"),
        ("Who tells them where to look", "circuit"),
    ],
)
def test_every_figure_is_saved_as_svg_and_csv(show, made, title, name):
    opened = show(made)
    opened.page.select_option(".choose select", "L1H1")
    file, svg = saved(opened, f"{title}: save as SVG")
    assert file == f"{name}.svg"
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(list(root.iter())) > 10
    assert not [one for one in root.iter() if one.tag.endswith(("script", "style", "foreignObject"))]
    assert "var(" not in svg
    file, text = saved(opened, f"{title}: save as CSV")
    assert file == f"{name}.csv"
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) > 1
    assert {len(row) for row in rows} == {len(rows[0])}
    opened.assert_quiet()


def test_the_saved_numbers_are_the_results(show, made):
    opened = show(made)
    _, text = saved(opened, "Loss of each token, on one prompt: save as CSV")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [float(row["loss_nats"]) for row in rows] == made["example"]["loss"]["clean"]
    assert [float(row["loss_nats_without_the_set"]) for row in rows] == made["example"]["loss"]["ablated"]
    _, text = saved(opened, "Every head by verdict: save as CSV")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["head"], float(row["induction"])) for row in rows] == [
        (f"L{one['layer']}H{one['head']}", one["scores"]["induction"]["mean"]) for one in made["scan"]["heads"]
    ]
    _, text = saved(opened, "verify.json")
    assert json.loads(text) == json.loads(json.dumps(made["verify"]))


def test_hostile_tokens_and_names_are_text(show, document):
    for token, text in zip(document["example"]["tokens"][4:], HOSTILE, strict=False):
        token["text"] = text
    for table in document["tables"]["heads"]:
        for row, text in zip(table["ov"], HOSTILE, strict=False):
            row["text"] = text
            row["best"] = [[1, one, 0.5] for one in HOSTILE]
    name = "</title><script>window.hurt = 3</script>\ud800"
    document["model"]["id"] = name
    document["finding"]["sentence"] = f"In {name}, something."
    document["verify"]["heads"][6]["reasons"] = ["<b onclick='window.hurt = 4'>bold</b>"]
    opened = show(document)
    page = opened.page
    assert page.evaluate("window.hurt") is None
    body = page.locator("body")
    assert "<script>window.hurt = 3</script>\ufffd" in body.inner_text()
    chips = page.locator(".chip").all_inner_texts()
    assert "</script><script>window.\u2026" in chips
    assert "\ufffd" in chips
    assert "\u27e8U+202E\u27e9gnp.exe" in chips
    assert f"{'x' * 24}\u2026" in chips
    assert "\u2400\u241b[31m" in chips
    assert page.locator("img, iframe, object, embed, b, script:not([type])").count() == 1  # the bundle
    # The token of 10,000 characters does not tear the page apart.
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    expect(page.locator(".choose select option")).to_have_count(len(document["scan"]["heads"]))
    for head in page.locator(".choose select option").all_inner_texts():
        page.select_option(".choose select", head)
    for button in ("Loss of each token, on one prompt", "Who tells them where to look"):
        _, svg = saved(opened, f"{button}: save as SVG")
        ElementTree.fromstring(svg)
    _, text = saved(opened, "Loss of each token, on one prompt: save as CSV")
    assert "'=cmd|" in text
    assert page.evaluate("window.hurt") is None
    opened.assert_quiet()


def test_a_script_that_slipped_into_the_page_does_not_run(show, made):
    smuggled = "<script>window.hurt = 1</script><img src='x' onerror='window.hurt = 2'>"
    opened = show(made, edit=lambda text: text.replace('<div id="page">', f'{smuggled}<div id="page">'))
    opened.page.wait_for_timeout(100)
    assert opened.page.evaluate("window.hurt") is None
    assert any("Content Security Policy" in one for one in opened.console)


def test_the_page_can_reach_nothing(show, made):
    opened = show(made)
    tried = """async () => {
      const failed = [];
      for (const attempt of [
        () => fetch('https://example.org/'),
        () => fetch('data:text/plain,x'),
        () => new Promise((ok, no) => {
          const s = new WebSocket('wss://example.org/'); s.onopen = ok; s.onerror = no;
        }),
        () => new Promise((ok, no) => {
          const i = new Image(); i.onload = ok; i.onerror = no; i.src = 'https://example.org/x.png';
        }),
        () => eval('1'),
        () => { document.body.innerHTML = '<p>x</p>'; },
      ]) {
        try { await attempt(); failed.push(false); } catch { failed.push(true); }
      }
      return failed;
    }"""
    assert opened.page.evaluate(tried) == [True] * 6


def test_a_page_without_a_finding_says_so(show, document):
    document["finding"] = {"sentence": "In demo, no head does induction.", "details": []}
    document["circuit"] = None
    document["circuit_reason"] = "queries and keys cannot be seen"
    document["example"]["loss"] = {**document["example"]["loss"], "ablated": None, "without": []}
    document["tables"] = {"heads": [], "reason": "its weights cannot be assigned to heads"}
    for one in document["verify"]["heads"]:
        one.update(verdict="none", copying=None, delta_loss_nats=None, first_copy=None, over_random=None, put_back=None)
    opened = show(document)
    text = opened.page.locator("main").inner_text()
    assert "queries and keys cannot be seen" in text
    assert "there is no set to take out" in text
    assert "its weights cannot be assigned to heads" in text
    assert "Its removal was not tried." in text
    opened.assert_quiet()


def test_a_null_result_looks_like_a_result(show, document):
    # Scores of 0.01 to 0.12: the best candidates stand against chance, the map is rescaled, and no card is empty.
    for number, head in enumerate(document["scan"]["heads"]):
        head["scores"]["induction"] |= {
            "mean": 0.01 * (number + 1),
            "ci95": [0.0, 0.2],
            "chance": 0.02,
            "control": 0.01,
        }
    for one in document["verify"]["heads"]:
        one.update(verdict="none")
    document["circuit"] |= {"receivers": [], "edges": [], "sets": [], "context": [], "notes": ["none is explained"]}
    opened = show(document)
    page = opened.page
    rows = page.locator("#heads .roles tbody tr").all_inner_texts()
    assert [one.split()[0] for one in rows] == ["L1H5", "L1H4", "L1H3", "L1H2", "L1H1"]
    assert rows[0].split("\t")[1:4] == ["0.120 [0.000, 0.200]", "0.020", "0.010"]
    assert page.locator("#circuit-part").count() == 0
    assert "none is explained" in page.locator("#made").inner_text()
    page.locator("label:has(input[value=induction])").click()
    assert "0.12, the largest" in page.locator("#head-map .legend").inner_text()
    darkest = page.locator("#head-map rect[data-head=L1H5]").get_attribute("fill")
    assert darkest == "#08306b"  # the end of the scale
    opened.assert_quiet()


def test_a_head_without_a_pattern_says_so(show, document):
    document["example"]["patterns"] = document["example"]["patterns"][6:]
    document["example"]["left_out"] = 6
    opened = show(document)
    opened.page.select_option(".choose select", "L0H0")
    assert "6 heads without a role are left out" in opened.page.locator(".card").inner_text()
    opened.assert_quiet()


def test_a_large_page_opens(show):
    # benchmarks/page.py times it; here it has to open, and to hold what the smaller ones do.
    from benchmarks.page import synthetic

    opened = show(synthetic())
    # The list of heads is filled after the first screen, and still names the head that the card is of.
    opened.page.wait_for_function("document.querySelectorAll('.choose option').length === 1024")
    assert opened.page.locator(".choose select").input_value() == opened.page.locator("#card-title").inner_text()
    assert opened.page.locator("#head-map rect[data-head]").count() == 1024
    assert "for all but" in opened.page.locator("#made").inner_text()
    opened.page.locator("label:has(input[value=induction])").click()
    opened.page.locator("#head-map rect[data-head]").nth(1000).click()
    assert opened.page.locator("#card-title").inner_text() == "L31H8"
    assert opened.page.locator(".choose select").input_value() == "L31H8"
    opened.assert_quiet()


def test_another_document_is_refused_in_words(window, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page_html({"schema": "headscope.scan/1"}, title="x"))
    page = window.page(width=1280, dark=False)
    page.goto(path.as_uri())
    page.wait_for_function("document.getElementById('page').textContent.includes('cannot be shown')")
    assert "this page shows headscope.report/1" in page.locator("#page").inner_text()


def test_the_largest_error_of_a_pattern_is_as_stated():
    assert "1 / 510" in example_module.__doc__
