"""The pattern view and the picture: exact, escaped, and drawn by a browser that has no network."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, HeadscopeError, TokenError
from headscope.planted.handbuilt import handbuilt
from headscope.render import pattern as notebook
from headscope.render.pattern import MAX_CELLS, MAX_TOKENS, Picture, pattern_picture, show_pattern, token_label
from headscope.render.theme import shade

SVG = "{http://www.w3.org/2000/svg}"
NASTY = [
    "</script><img src=x onerror=alert(1)>",
    "\u202egnp.exe",
    "\ud800",
    "שלום",
    "a\nb",
    "<!--<script>",
    "&amp;",
    "",
]


@pytest.fixture(scope="module")
def demo():
    return hs.load("demo")


@pytest.fixture(scope="module")
def prompt(demo):
    return hs.repeated_tokens(demo, n_prompts=1, period=10, jitter=False).prompts[0]


class Nasty:
    """A tokenizer whose tokens are what tokens may be: any text at all."""

    all_special_ids: tuple[int, ...] = ()
    bos_token_id = None

    def __len__(self):
        return len(NASTY)

    def decode(self, ids):
        return NASTY[ids[0] % len(NASTY)]


def own_pattern(model, tokens):
    """Every layer's pattern by the model's own eager attention."""
    before = model.hf.config._attn_implementation
    model.hf.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model.hf(input_ids=torch.from_numpy(tokens)[None], output_attentions=True).attentions
    finally:
        model.hf.set_attn_implementation(before)


def properties(view):
    """What the view gives CircuitsVis."""
    found = re.search(r"\.render\(\"[\w-]+\", [\w.]+\.AttentionHeads, (\{.*\})\);\n</script>$", view.html)
    assert found
    return json.loads(found[1])


# ---- the view


def test_the_view_shows_the_models_own_probabilities(demo, prompt):
    view = show_pattern(demo, prompt, ["L1H1", "0.4"])
    shown, own = properties(view), own_pattern(demo, prompt)
    assert shown["attentionHeadNames"] == ["L1H1", "L0H4"]
    for pattern, expected in zip(shown["attention"], (own[1][0, 1], own[0][0, 4]), strict=True):
        assert np.asarray(pattern) == approx(expected.numpy(), abs=1e-4)  # rounded to 4 digits
    assert len(shown["tokens"]) == view.n_tokens == len(prompt) == 21
    assert repr(view) == "PatternView(L1H1, L0H4; 21 tokens)"


def test_a_text_is_read_with_its_start_token(demo):
    assert properties(show_pattern(demo, "def f", "L0H4"))["tokens"] == ["<|bos|>", "def", "·f"]


def test_the_view_asks_the_network_for_nothing_and_leaves_circuitsvis_alone(demo, prompt, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    for name in [name for name in sys.modules if name.split(".")[0] == "circuitsvis"]:
        monkeypatch.delitem(sys.modules, name)
    html = show_pattern(demo, prompt, "L1H1")._repr_html_()
    assert "circuitsvis" not in sys.modules
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//|import\s*\(|@import", html.partition("<script")[0])
    assert "unpkg.com" not in html


def test_tokens_are_data(demo, prompt):
    nasty = hs.load(demo.hf, tokenizer=Nasty())
    html = show_pattern(nasty, np.arange(len(NASTY)), "L1H1").html
    assert html.isascii()
    assert html.count("<script") - html.count('"<script>') == 1
    assert html.lower().count("</script") == 1
    assert html.endswith("</script>")
    assert "onerror=alert" not in html.replace("\\u003cimg", "")


def test_a_size_that_would_freeze_a_browser_is_refused(demo):
    # 70 tokens, 4 heads: 70 * 70 * 5 = 24,500 cells
    with pytest.raises(ArgumentError, match=r"4 heads on 70 tokens are 24,500 cells.*at most 20,000.*pattern_picture"):
        show_pattern(demo, np.arange(2, 72), ["L1H0", "L1H1", "L1H2", "L1H3"])
    largest = int((MAX_CELLS / 2) ** 0.5)
    assert show_pattern(demo, np.arange(2, 2 + largest), "L1H1").n_tokens == 100 == largest


@pytest.mark.parametrize("origin", [None, "/nowhere/__init__.py"])
def test_without_circuitsvis_one_line_says_so(demo, prompt, monkeypatch, origin):
    class Spec:
        pass

    Spec.origin = origin
    monkeypatch.setattr(notebook, "find_spec", lambda name: Spec if origin else None)
    with pytest.raises(HeadscopeError, match=r"not installed; run `pip install 'headscope\[notebook\]'`") as raised:
        show_pattern(demo, prompt, "L1H1")
    assert "\n" not in str(raised.value)
    assert pattern_picture(demo, prompt, "L1H1").svg  # which needs no extra


# ---- the picture


def cells(picture: Picture):
    """Filled cells of each panel, as {(query, key): colour}, and its outlined cells."""
    panels = []
    for group in ET.fromstring(picture.svg).findall(f"{SVG}g"):
        squares = group.findall(f"{SVG}rect")
        filled = [one for one in squares if one.get("fill") != "none"]
        size = float(filled[0].get("width"))
        left = min(float(one.get("x")) for one in filled)
        top = min(float(one.get("y")) for one in filled)

        def place(one, left=left, top=top, size=size):
            return round((float(one.get("y")) - top) / size), round((float(one.get("x")) - left) / size)

        outlined = {place(one) for one in squares if one.get("fill") == "none"}
        panels.append(({place(one): one.get("fill") for one in filled}, outlined))
    return panels


def test_the_picture_holds_each_cell_in_its_colour_and_outlines_the_stripe(demo, prompt):
    picture = pattern_picture(demo, prompt, ["L0H4", "L1H1"])
    own = own_pattern(demo, prompt)
    for (filled, outlined), (layer, head) in zip(cells(picture), [(0, 4), (1, 1)], strict=True):
        pattern = own[layer][0, head].double()
        assert {(q, k) for q, k in (pattern >= 0.021).nonzero().tolist()} <= set(filled)
        assert {(q, k) for q, k in (pattern >= 0.019).nonzero().tolist()} >= set(filled)
        for (query, key), fill in filled.items():
            shades = [int(shade(float(pattern[query, key]))[at : at + 2], 16) for at in (1, 3, 5)]
            assert [int(fill[at : at + 2], 16) for at in (1, 3, 5)] == approx(shades, abs=1)
        # [BOS, r, r] with 10 tokens: queries 11 .. 20 look at query - 9
        assert outlined == {(query, query - 9) for query in range(11, 21)}


@pytest.mark.parametrize(("mark", "n"), [("previous_token", 20), ("duplicate_token", 10), (None, 0)])
def test_another_role_can_be_outlined_or_none(demo, prompt, mark, n):
    ((_, outlined),) = cells(pattern_picture(demo, prompt, "L1H1", mark=mark))
    assert len(outlined) == n


def test_a_model_without_a_tokenizer_shows_ids_and_nothing_is_left_changed():
    built = handbuilt(vocab_size=64, n_positions=64)
    tokens = np.asarray([0, 5, 6, 7, 5, 6, 7])
    before = tokens.copy()
    (head,) = built.heads("induction")
    picture = pattern_picture(built.model, tokens, head)
    assert (tokens == before).all()
    ((filled, outlined),) = cells(picture)
    assert {at for at in filled if at[1] > 0} == outlined == {(4, 2), (5, 3), (6, 4)}  # else it rests on the start
    assert re.findall(r">(\d+)</text>", picture.svg)[::2] == ["0", "5", "6", "7", "5", "6", "7"]


def test_a_long_prompt_has_fewer_labels_and_a_longer_one_is_refused(demo):
    picture = pattern_picture(demo, np.arange(150) + 2, "L1H1")
    assert len(ET.fromstring(picture.svg).find(f"{SVG}g").findall(f"{SVG}text")) < 100
    with pytest.raises(ArgumentError, match=f"257 tokens are too many for a picture, which shows at most {MAX_TOKENS}"):
        pattern_picture(demo, np.arange(257) + 2, "L1H1")


def test_the_picture_is_one_svg_without_scripts_whatever_the_tokens_are(demo, tmp_path):
    nasty = hs.load(demo.hf, tokenizer=Nasty())
    picture = pattern_picture(nasty, np.arange(2 * len(NASTY)), ["L1H1", "L0H4"])
    svg = ET.fromstring(picture._repr_svg_())  # parses: no stray `<`, no character that XML forbids
    assert {one.tag.removeprefix(SVG) for one in svg.iter()} == {"svg", "g", "path", "rect", "text", "title"}
    assert not [name for one in svg.iter() for name in one.attrib if name.startswith("on") or "href" in name]
    assert picture.save(tmp_path / "p.svg").read_text() == picture.svg
    assert repr(picture) == "Picture(attention of L1H1, L0H4 on 16 tokens, induction outlined)"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" the", "·the"),
        ("a\nb", "a\\nb"),
        ("\u202egnp", "\\u202egnp"),
        ("\ud800", "\\ud800"),
        ("\u0301", "◌\u0301"),
        ("שלום", "שלום"),
        ("12345678901", "123456789…"),
        ("", ""),
    ],
)
def test_a_label_is_one_line_of_what_can_be_seen(text, shown):
    assert token_label(text) == shown


# ---- both


def test_keys_that_are_not_tokens_are_left_out():
    # deepseek_v4 attends to a compressed key for every 4 tokens besides
    model = hs.load(tiny_causal_lm("deepseek_v4"))
    n_tokens, prompt = 12, [*range(3, 15)]
    (pattern,) = properties(show_pattern(model, prompt, ["L1H1"]))["attention"]
    assert np.shape(pattern) == (n_tokens, n_tokens)
    assert (
        pattern_picture(model, prompt, ["L1H1"]).title == f"attention of L1H1 on {n_tokens} tokens, induction outlined"
    )


@pytest.mark.parametrize("show", [show_pattern, pattern_picture])
def test_what_does_not_fit_is_refused(demo, prompt, show):
    with pytest.raises(ArgumentError, match="demo has no head L9H9"):
        show(demo, prompt, "L9H9")
    with pytest.raises(ArgumentError, match=r"demo does not run L1H1#1"):
        show(demo, prompt, "L1H1#1")
    with pytest.raises(TokenError, match="2 prompts were given"):
        show(demo, [[1, 2], [3, 4]], "L1H1")
    with pytest.raises(TokenError, match="the text is empty"):
        show(demo, " ", "L1H1")
    with pytest.raises(TokenError, match="outside the vocabulary"):
        show(demo, [99999], "L1H1")
    with pytest.raises(ArgumentError, match="no detector 'stripe'"):
        pattern_picture(demo, prompt, "L1H1", mark="stripe")


# ---- in a browser


def test_a_browser_without_network_draws_the_view(browser, demo, prompt, tmp_path):
    nasty = hs.load(demo.hf, tokenizer=Nasty())
    page_file = tmp_path / "view.html"
    views = [show_pattern(demo, prompt, ["L1H1", "L0H4"]), show_pattern(nasty, np.arange(len(NASTY)), "L1H1")]
    page_file.write_text(f"<!doctype html><title>t</title><body>{views[0].html}{views[1].html}")
    page = browser.new_page(viewport={"width": 1000, "height": 1000})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    # Of the first view: two small maps, and the first head large. Of the second one of each.
    page.wait_for_function("document.querySelectorAll('canvas').length === 5")
    large = page.locator("canvas").nth(2)
    assert large.bounding_box()["width"] > 500
    expected = own_pattern(demo, prompt)[1][0, 1].numpy()
    read = """canvas => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => {
        const {width, height} = canvas, data = canvas.getContext('2d').getImageData(0, 0, width, height).data;
        const rows = [];
        for (let y = 0; y < height; y++) rows.push(Array.from(
            {length: width}, (_, x) => data[4 * (y * width + x) + 3] ? data[4 * (y * width + x)] : 255));
        done(rows)})))"""
    red = np.asarray(large.evaluate(read))  # 255 is white, probability 0; 0 is blue, probability 1
    page.close()
    assert (red < 40).any(), "no dark cell: the pattern is not there"
    # Colours are mixed as the eye sees them, so shades are not quite in proportion.
    drawn = read_cells(red, len(prompt))
    assert drawn == approx(expected, abs=0.25)
    assert np.corrcoef(drawn.ravel(), expected.ravel())[0, 1] > 0.98
    assert said == []
    assert asked == [page_file.as_uri()]


def read_cells(red, n):
    """Probabilities read back from the middle of each cell on or below the diagonal; 0 above it."""
    # Above the diagonal all is grey, 200: its longest row is the first, which starts with one cell of attention 1.
    grey_rows, grey_columns = np.nonzero(np.abs(red - 200) < 3)
    right, top = grey_columns.max() + 1, grey_rows.min()
    cell = (right - grey_columns.min()) / (n - 1)
    left = right - n * cell
    at = (np.arange(n) + 0.5) * cell
    seen = 1 - red[np.ix_((top + at).astype(int), (left + at).astype(int))] / 255
    return np.tril(seen)
