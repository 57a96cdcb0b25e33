"""Effects with intervals, as SVG: places on the axis by hand, and labels that are data."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from pytest import approx

from headscope.render.effects import Row, intervals_svg, note, span, ticks

SVG = "{http://www.w3.org/2000/svg}"


def row(label="L0H0", mean=1.0, ci95=(0.5, 1.5), word="induction", control=False):
    return Row(label=label, mean=mean, ci95=ci95, word=word, control=control)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 7.0, [0, 2, 4, 6, 8]),  # 7 / 5 = 1.4, the next round step is 2
        (-0.3, 6.7, [-2, 0, 2, 4, 6, 8]),
        (-0.012, 0.003, [-0.015, -0.01, -0.005, 0, 0.005]),  # 0.015 / 5 = 0.003 -> 0.005
        (0.0, 3e5, [0, 100_000, 200_000, 300_000]),
    ],
)
def test_ticks_are_round_and_enclose_the_interval(low, high, expected):
    assert ticks(low, high) == approx(expected)


def test_the_span_holds_zero_and_every_interval():
    assert span([row(), row(mean=2.0, ci95=(-1.0, 3.0))]) == (-1.0, 3.0)
    assert span([row(mean=2.0, ci95=None)]) == (0.0, 2.0)
    assert span([row(mean=0.0, ci95=None)]) == (0.0, 1.0)
    assert span([]) == (0.0, 1.0)


def test_dots_and_bars_stand_where_the_numbers_say():
    # The axis runs from 0 at x = 96 to 4 at x = 96 + 360, so 1 is at 186 and 3 at 366.
    root = ElementTree.fromstring(
        intervals_svg([row(ci95=(0.0, 1.0)), row(mean=3.0, ci95=(2.0, 4.0))], title="t", axis="a")
    )
    assert [float(one.get("cx")) for one in root.iter(f"{SVG}circle")] == approx([186, 366])
    bars = [one for one in root.iter(f"{SVG}line") if one.get("stroke-width") == "2"]
    assert [(float(one.get("x1")), float(one.get("x2"))) for one in bars] == [(96, 186), (276, 456)]


def test_a_control_is_hollow_and_an_unknown_interval_draws_no_bar():
    root = ElementTree.fromstring(intervals_svg([row(), row(control=True, ci95=None)], title="t", axis="a"))
    full, hollow = (one.get("fill") for one in root.iter(f"{SVG}circle"))
    assert (full == "#ffffff", hollow == "#ffffff") == (False, True)
    assert len([one for one in root.iter(f"{SVG}line") if one.get("stroke-width") == "2"]) == 1


def test_labels_are_text():
    hurt = "<script>1</script>&\"'"
    text = intervals_svg([row(label=hurt, word=hurt)], title=hurt, axis=hurt)
    assert "<script" not in text
    shown = [one.text for one in ElementTree.fromstring(text).iter(f"{SVG}text")]
    assert shown.count(hurt) == 4


def test_without_rows_it_says_so():
    assert "nothing was measured" in intervals_svg([], title="t", axis="a")


def test_a_row_in_words():
    assert note(row()) == "L0H0: 1.000 [0.500, 1.500] induction"
    assert note(row(ci95=None, word="")) == "L0H0: 1.000"
