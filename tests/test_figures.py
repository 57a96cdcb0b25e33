"""Matplotlib figures: what is drawn is what the records say, and a figure belongs to its caller."""

from __future__ import annotations

import io
import sys

import matplotlib as mpl
import nbformat
import numpy as np
import pypdf
import pytest
from matplotlib import pyplot
from nbclient import NotebookClient
from pytest import approx

import headscope as hs
from headscope.render.effects import Row
from headscope.render.figures import LABELLED, diagram_figure, intervals_figure, maps_figure
from headscope.render.graph import Arrow, Node
from headscope.render.maps import Panel
from headscope.render.theme import shade

mpl.use("agg")

PANEL = Panel(title="previous_token", values=[[0.0, 1.0], [0.25]], notes=[["", ""], [""]])
ROWS = [
    Row(label="L0H4", mean=2.0, ci95=(1.5, 2.5), word="previous token"),
    Row(label="L1H4", mean=0.1, ci95=None, word="random control", control=True),
]
NODES = [Node(label="L0H4", layer=0, note="sender"), Node(label="L1H1", layer=1, note="induction")]
ARROW = Arrow(source="L0H4", target="L1H1", weight=0.5, note="")


def texts(figure):
    svg = io.BytesIO()
    figure.savefig(svg, format="svg")
    return svg.getvalue().decode()


def test_a_map_shows_each_value_and_leaves_missing_heads_blank():
    figure = maps_figure([PANEL])
    (image,) = figure.axes[0].images
    np.testing.assert_equal(np.ma.filled(image.get_array(), np.nan), [[0.0, 1.0], [0.25, np.nan]])
    assert image.get_clim() == (0, 1)
    for value in (0.0, 0.5, 1.0):  # a colour map of 256 steps
        assert image.cmap(value)[:3] == approx(mpl.colors.to_rgb(shade(value)), abs=1 / 255)
    assert figure.axes[0].get_title(loc="left") == "previous token"


def test_maps_beyond_a_row_go_on_in_the_next_and_spare_places_stay_empty():
    figure = maps_figure([PANEL] * 4)
    drawn = [bool(axes.images) for axes in figure.axes[:6]]
    assert drawn == [True] * 4 + [False] * 2


def test_effects_stand_in_order_with_their_intervals():
    axes = intervals_figure(ROWS, title="t", axis="nats").axes[0]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert lines == [([0, 0], [0, 1]), ([1.5, 2.5], [0, 0]), ([2.0], [0]), ([0.1], [1])]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["L0H4", "L1H4"]
    assert axes.lines[2].get_markerfacecolor() != "white"
    assert axes.lines[3].get_markerfacecolor() == "white"
    bottom, top = axes.get_ylim()
    assert bottom > top, "the first row stands on top"


def test_arrows_are_as_wide_as_what_they_carry():
    figure = diagram_figure(NODES, [ARROW, Arrow(source="L0H4", target="L1H1", weight=1.0, note="")])
    widths = [one.get_linewidth() for one in figure.axes[0].patches]
    assert widths == approx([0.6 + 2.4 * 0.5, 0.6 + 2.4])


def test_arrows_into_one_head_end_beside_each_other_each_under_its_share():
    sides = [Node(label=f"L0H{one}", layer=0, note="") for one in (0, 1)]
    head = Node(label="L1H0", layer=1, note="")
    arrows = [Arrow(source=one.label, target="L1H0", weight=0.5, note="", label=one.label[-1]) for one in sides]
    axes = diagram_figure([*sides, head], arrows).axes[0]
    ends = {one.get_text(): one.get_position()[0] for one in axes.texts if one.get_text() in "01"}
    # the head stands in the middle of two places, 2 * 0.5 / 1 = 1; two arrows are 0.8 / 2 = 0.4 apart
    assert (ends["0"], ends["1"]) == (approx(0.8), approx(1.2))


def test_an_empty_circuit_says_so():
    assert "no circuit found" in texts(diagram_figure([], []))


def test_text_stays_text_in_a_file():
    # Drawn as paths, a text is still in the file as a comment: `<text` alone is text.
    assert ">random control</text>" in texts(intervals_figure(ROWS, title="t", axis="nats"))


@pytest.mark.parametrize(
    "figure",
    [maps_figure([PANEL]), intervals_figure(ROWS, title="t", axis="a"), diagram_figure(NODES, [ARROW])],
    ids=["maps", "intervals", "diagram"],
)
def test_a_pdf_holds_truetype_fonts(figure):
    pdf = io.BytesIO()
    figure.savefig(pdf, format="pdf")
    fonts = [font.get_object() for page in pypdf.PdfReader(pdf).pages for font in page["/Resources"]["/Font"].values()]
    assert {(font["/Subtype"], font.get("/DescendantFonts", [{}])[0].get_object()["/Subtype"]) for font in fonts} == {
        ("/Type0", "/CIDFontType2")  # TrueType; matplotlib's own choice is /Type3, which some publishers refuse
    }


def test_a_figure_is_as_wide_as_a_column():
    for figure in (
        maps_figure([PANEL], width_in=3.25),
        intervals_figure(ROWS, title="t", axis="a", width_in=3.25),
        diagram_figure(NODES, [ARROW], width_in=3.25),
    ):
        assert figure.get_size_inches()[0] == 3.25


def test_colours_are_the_verdicts_and_arrows_say_their_share():
    row = Row(label="L1H1", mean=1.0, ci95=None, word="induction", colour="#d55e00")
    assert intervals_figure([row], title="t", axis="a").axes[0].lines[1].get_markerfacecolor() == "#d55e00"
    arrow = Arrow(source="L0H4", target="L1H1", weight=0.5, note="", label="50%")
    assert "50%" in [one.get_text() for one in diagram_figure(NODES, [arrow]).axes[0].texts]
    many = diagram_figure(NODES, [arrow] * (LABELLED + 1))
    assert "50%" not in [one.get_text() for one in many.axes[0].texts]


def test_a_figure_is_not_kept_by_pyplot_and_leaves_its_settings_alone():
    before = dict(mpl.rcParams)
    for figure in (maps_figure([PANEL]), intervals_figure(ROWS, title="t", axis="a"), diagram_figure(NODES, [ARROW])):
        figure.savefig(io.BytesIO(), format="pdf")
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(hs.HeadscopeError, match=r"not installed; run pip install \"headscope\[notebook\]\""):
        maps_figure([PANEL])


def test_results_plot_their_own_numbers():
    model = hs.load("demo")
    scan = hs.scan(model)
    (image,) = scan.plot("induction").axes[0].images
    for score in scan.ranked("induction"):
        assert image.get_array()[score.head.layer, score.head.head] == approx(score.mean)
    assert len(scan.plot().axes) == len(scan.roles) + 1
    with pytest.raises(hs.HeadscopeError, match="no detector 'nothing'"):
        scan.plot("nothing")

    found = hs.verify(model, ["L1H1", "L1H4"], probe=hs.repeated_tokens(model, n_prompts=4, period=20))
    axes = found.plot().axes[0]
    dots = {
        label.get_text(): line.get_xdata()[0]
        for label, line in zip(
            axes.get_yticklabels(), [one for one in axes.lines if one.get_marker() == "o"], strict=True
        )
    }
    assert dots["L1H1"] == approx(found["L1H1"].delta_loss_nats.mean)
    assert "L1H1" in found._repr_html_()


def test_a_notebook_shows_a_figure_once():
    cell = "from headscope.render.figures import diagram_figure\ndiagram_figure([], [])"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    pictures = [one for one in notebook.cells[0].outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == 1
