"""The drawing of a circuit: well-formed, complete, in rows by layer, and no wider than its heads ask."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as xml

import pytest

from headscope.render.graph import Arrow, Node, diagram_svg

SVG = "{http://www.w3.org/2000/svg}"


def node(label, layer, note=""):
    return Node(label=label, layer=layer, note=note)


def arrow(source, target, weight=0.5, note=""):
    return Arrow(source=source, target=target, weight=weight, note=note)


def parsed(nodes, arrows=()):
    text = diagram_svg(nodes, arrows)
    assert text.endswith("</svg>\n")
    root = xml.fromstring(text)  # raises where it is not well-formed
    assert root.tag == f"{SVG}svg"
    return root


def places(root):
    """The centre of every text, by its words."""
    return {one.text: (float(one.get("x")), float(one.get("y"))) for one in root.iter(f"{SVG}text")}


HEADS = [node("L0H4", 0, "sender"), node("L0H1", 0), node("L2H1", 2, "induction"), node("L5H0", 5)]


def test_every_head_layer_and_note_is_there():
    root = parsed(HEADS, [arrow("L0H4", "L2H1", note="99% of its stripe"), arrow("L0H1", "L5H0", note="a tenth")])
    assert places(root).keys() == {
        *("L0H4", "L0H1", "L2H1", "L5H0"), "sender", "induction", "layer 0", "layer 2", "layer 5",
    }  # fmt: skip
    assert [one.text for one in root.iter(f"{SVG}title")] == ["99% of its stripe", "a tenth"]
    assert len(list(root.iter(f"{SVG}rect"))) == 4
    # an arrow is a line and a tip
    assert len(list(root.iter(f"{SVG}path"))) == 4


def test_the_last_layer_stands_on_top_and_heads_of_a_layer_side_by_side():
    root = parsed(HEADS)
    at, boxes = places(root), [float(box.get("y")) for box in root.iter(f"{SVG}rect")]
    assert at["L5H0"][1] < at["L2H1"][1] < at["L0H4"][1]
    assert boxes[0] == boxes[1] > boxes[2] > boxes[3]
    assert at["layer 5"][1] < at["layer 2"][1] < at["layer 0"][1]
    assert at["L0H4"][0] < at["L0H1"][0]
    assert {at[f"layer {n}"][0] for n in (0, 2, 5)} == {12.0}


def test_an_arrow_goes_from_the_top_of_its_source_to_the_bottom_of_its_target():
    root = parsed([node("a", 0), node("b", 3)], [arrow("a", "b")])
    below, above = ((float(box.get("x")), float(box.get("y"))) for box in root.iter(f"{SVG}rect"))
    line = next(root.iter(f"{SVG}path")).get("d")
    numbers = [float(one) for one in re.findall(r"-?\d+(?:\.\d+)?", line)]
    assert numbers[:2] == [below[0] + 58, below[1]]
    assert numbers[-2] == above[0] + 58
    assert above[1] + 44 < numbers[-1] < below[1]


def test_width_grows_with_the_weight():
    root = parsed(
        [node("a", 0), node("b", 0), node("c", 0), node("d", 1)],
        [arrow("c", "d", 1.0), arrow("a", "d", 0.0), arrow("b", "d", 0.5)],
    )
    widths = [float(one.get("stroke-width")) for one in root.iter(f"{SVG}path") if one.get("stroke-width")]
    assert widths == [1.0, 3.5, 6.0]  # the strongest is drawn last, on top


@pytest.mark.parametrize("n_heads", [1, 5, 12])
def test_every_box_lies_within_the_drawing_and_none_on_another(n_heads):
    root = parsed([node(f"L1H{one}", 1) for one in range(n_heads)] + [node("L0H0", 0)])
    left, top, width, height = map(float, root.get("viewBox").split())
    boxes = [tuple(float(box.get(name)) for name in ("x", "y", "width", "height")) for box in root.iter(f"{SVG}rect")]
    assert (left, top) == (0, 0)
    for x, y, w, h in boxes:
        assert x >= 64 - 1  # the names of the layers stand before
        assert x + w <= width
        assert y >= 0
        assert y + h <= height
    row = sorted(box[0] for box in boxes if box[1] == boxes[0][1])
    assert all(b - a > 116 for a, b in itertools.pairwise(row))


def test_names_are_escaped():
    root = parsed([node('<a & "b">', 0, "x < y"), node("c", 1)], [arrow('<a & "b">', "c", note="5 > 4 & more")])
    assert {'<a & "b">', "x < y"} <= places(root).keys()
    assert next(root.iter(f"{SVG}title")).text == "5 > 4 & more"


def test_it_stands_alone():
    text = diagram_svg(HEADS, [arrow("L0H4", "L2H1")])
    assert not re.search(r"<script|<style|href|url\(|@import|<image", text)
    assert text.count("http") == 1  # the name space


def test_nothing_to_draw_is_said():
    root = parsed([])
    assert places(root).keys() == {"no circuit found"}
    assert not list(root.iter(f"{SVG}rect"))


def test_heads_without_an_arrow_are_drawn():
    assert "L2H1" in places(parsed([node("L2H1", 2)]))
