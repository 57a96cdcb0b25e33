"""Maps of layers and heads as SVG and as characters: each place has its value, and text stays text."""

from __future__ import annotations

from xml.etree import ElementTree

from pytest import approx

from headscope.render.maps import Panel, heatmap_svg, heatmap_text
from headscope.render.theme import LIGHT, shade

SVG = "{http://www.w3.org/2000/svg}"
PANEL = Panel(title="a & b", values=[[0.0, 1.0], [0.25, None]], notes=[["L0H0", "<b>"], ["L1H0", "no head"]])


def cells(panel):
    """Of each cell its place, colour and note."""
    found = [one for one in panel if one.tag == f"{SVG}rect"]
    return [(float(one.get("x")), float(one.get("y")), one.get("fill"), one.findtext(f"{SVG}title")) for one in found]


def test_a_cell_is_where_its_layer_and_head_are_and_as_dark_as_its_value():
    (panel,) = ElementTree.fromstring(heatmap_svg([PANEL]))
    (x00, y00, *first), (x01, y01, *second), (x10, y10, *third), (x11, y11, *fourth) = cells(panel)
    assert (x00, x01) == (x10, x11)
    assert x00 < x01
    assert y00 == y01 < y10 == y11
    assert [first, second, third, fourth] == [
        [shade(0.0), "L0H0"], [shade(1.0), "<b>"], [shade(0.25), "L1H0"], [LIGHT.empty, "no head"],
    ]  # fmt: skip
    words = [one.text for one in panel if one.tag == f"{SVG}text"]
    assert words == ["a & b", "L0", "L1", "0", "1"]


def test_maps_stand_side_by_side_and_then_below_each_other():
    drawn = ElementTree.fromstring(heatmap_svg([PANEL] * 3, columns=2))
    places = [tuple(map(float, one.get("transform")[10:-1].split(","))) for one in drawn]
    (left, top), (right, beside), (under, below) = places
    assert (left, top, beside, under) == (0, 0, 0, 0)
    assert float(drawn.get("width")) == approx(2 * right)
    assert float(drawn.get("viewBox").split()[3]) == approx(2 * below)


def test_a_wide_model_has_a_number_under_some_heads_alone():
    wide = Panel(title="t", values=[[0.5] * 48], notes=[[""] * 48])
    (panel,) = ElementTree.fromstring(heatmap_svg([wide]))
    assert [one.text for one in panel if one.tag == f"{SVG}text"][2:] == [str(head) for head in range(0, 48, 3)]


def test_no_maps_are_an_empty_picture():
    assert len(ElementTree.fromstring(heatmap_svg([]))) == 0


def test_characters_darken_in_five_steps():
    steps = Panel(title="induction", values=[[0.0, 0.2, 0.4, 0.6, 0.8, 1.0, None]], notes=[[""] * 7])
    assert heatmap_text(steps).splitlines()[-1] == "L0   ░░▒▒▓▓████··"
