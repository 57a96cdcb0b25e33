"""Results as matplotlib figures for a paper: the maps, the effects, the circuit.

What is drawn is what `headscope.render.maps`, `headscope.render.effects` and `headscope.render.graph` draw as SVG, from
the same records. A figure belongs to its caller: it is not pyplot's current one, a notebook shows it where it is a
cell's value, and `figure.savefig("name.pdf")` writes it with text as text: TrueType in PDF, letters in SVG. Those two
are settings of matplotlib that are read while a file is written, so the figure sets them then.
"""

# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from headscope.errors import ArgumentError
from headscope.render.effects import Row
from headscope.render.graph import Arrow, Node
from headscope.render.maps import Panel
from headscope.render.theme import LIGHT, shade

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL_IN, _ROW_IN = 0.2, 0.2
"""Inches."""
_STYLE: dict[str, Any] = {
    "font.size": 8,
    "axes.edgecolor": LIGHT.soft,
    "axes.labelcolor": LIGHT.ink,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": LIGHT.ink,
    "xtick.color": LIGHT.soft,
    "ytick.color": LIGHT.ink,
}
_FILES: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}
LABELLED = 24
"""Arrows that still have their share beside them."""
BOX, BELOW = 0.17, 0.17
"""Rows from a head's middle to where its arrows end, and from there to the share on each."""


def maps_figure(panels: Sequence[Panel], *, columns: int = 3, width_in: float | None = None) -> Figure:
    """Layer x head maps on one scale from 0 to 1; a cell without a head is blank."""
    pyplot, colors, ticker = _matplotlib()
    n_layers = max((len(panel.values) for panel in panels), default=1)
    n_heads = max((len(row) for panel in panels for row in panel.values), default=1)
    columns = min(columns, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    size = (columns * max(1.6, n_heads * _CELL_IN + 0.7) + 0.5, rows * max(1.2, n_layers * _CELL_IN + 0.75))
    shades = colors.LinearSegmentedColormap.from_list("headscope", [shade(0.0), shade(1.0)])
    with pyplot.rc_context(_STYLE):
        figure, grid = pyplot.subplots(
            rows, columns, figsize=size, squeeze=False, layout="constrained", FigureClass=_paper()
        )
        image = None
        for panel, axes in zip(panels, grid.flat, strict=False):
            values = [
                [float("nan") if one is None else one for one in row] + [float("nan")] * (n_heads - len(row))
                for row in panel.values
            ]
            image = axes.imshow(values, cmap=shades, vmin=0, vmax=1, aspect="equal", interpolation="nearest")
            axes.set_title(panel.title.replace("_", " "), loc="left")
            axes.set(xlabel="head", ylabel="layer")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=12))
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_axis_off()
        if image is not None:
            figure.colorbar(image, ax=list(grid.flat), label="attention", shrink=0.8)
    if width_in is not None:
        figure.set_size_inches(width_in, size[1] * width_in / size[0])
    return _own(pyplot, figure)


def intervals_figure(rows: Sequence[Row], *, title: str, axis: str, width_in: float | None = None) -> Figure:
    """One row for each effect: a dot at the mean, a bar over its interval, a word behind it."""
    pyplot, *_ = _matplotlib()
    with pyplot.rc_context(_STYLE):
        size = (width_in or 5.2, 0.9 + _ROW_IN * max(1, len(rows)))
        figure, axes = pyplot.subplots(figsize=size, layout="constrained", FigureClass=_paper())
        axes.axvline(0, color=LIGHT.soft, linewidth=0.8)
        for place, row in enumerate(rows):
            ink = row.colour or LIGHT.clean
            if row.ci95 is not None:
                axes.plot(row.ci95, (place, place), color=ink, linewidth=1.5, solid_capstyle="butt")
            # A grey rim, so that the palest verdict is seen on paper too; a control is hollow.
            face, rim, wide = ("white", ink, 1.0) if row.control else (ink, LIGHT.soft, 0.5)
            axes.plot(
                row.mean, place, "o", markersize=4.5, markerfacecolor=face, markeredgecolor=rim, markeredgewidth=wide
            )
            axes.annotate(
                row.word, (1, place), (6, 0), xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                va="center", color=LIGHT.soft,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_title(title, loc="left")
        figure.supxlabel(axis, fontsize=8)
    return _own(pyplot, figure)


def diagram_figure(nodes: Sequence[Node], arrows: Sequence[Arrow], *, width_in: float | None = None) -> Figure:
    """Heads in rows by layer, the last on top, and arrows as wide as what they carry, with that beside them."""
    pyplot, *_ = _matplotlib()
    from matplotlib import patches
    from matplotlib import path as paths

    layers = sorted({node.layer for node in nodes})
    widest = max((sum(node.layer == layer for node in nodes) for layer in layers), default=1)
    at: dict[str, tuple[float, int]] = {}
    for row, layer in enumerate(layers):
        those = [node for node in nodes if node.layer == layer]
        at |= {node.label: (widest * (column + 0.5) / len(those), row) for column, node in enumerate(those)}
    with pyplot.rc_context(_STYLE):
        size = (width_in or max(3.2, 1.15 * widest + 0.7), max(1.2, 1.4 * len(layers)))
        figure, axes = pyplot.subplots(figsize=size, FigureClass=_paper())
        figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
        axes.set(xlim=(-0.35, widest), ylim=(-0.5, max(1, len(layers)) - 0.5))
        axes.set_axis_off()
        if not nodes:
            axes.text(0.5, 0, "no circuit found", color=LIGHT.soft, ha="center")
        for row, layer in enumerate(layers):
            axes.text(-0.3, row, f"layer {layer}", color=LIGHT.soft, va="center")
        for arrow in sorted(arrows, key=lambda arrow: arrow.weight):
            (x0, y0), (x1, y1) = at[arrow.source], at[arrow.target]
            x1 += _aside(arrow, arrows, at)
            low, high = y0 + BOX, y1 - BOX
            middle = (low + high) / 2
            curve = paths.Path([(x0, low), (x0, middle), (x1, middle), (x1, high)], [1, 4, 4, 4])
            wide = 0.6 + 2.4 * arrow.weight
            style: dict[str, Any] = {"arrowstyle": "-|>", "mutation_scale": 7 + wide, "shrinkA": 0, "shrinkB": 0}
            axes.add_patch(patches.FancyArrowPatch(path=curve, color=LIGHT.clean, linewidth=wide, **style))
            if arrow.label and len(arrows) <= LABELLED:
                back = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
                axes.text(x1, high - BELOW, arrow.label, fontsize=7, ha="center", va="center", bbox=back)
        for node in nodes:
            x, y = at[node.label]
            box = {
                "boxstyle": "round,pad=0.5",
                "facecolor": LIGHT.box,
                "edgecolor": node.colour or LIGHT.soft,
                "linewidth": 1.4 if node.colour else 0.6,
            }
            text = f"{node.label}\n{node.note}" if node.note else node.label
            axes.text(x, y, text, ha="center", va="center", bbox=box)
    return _own(pyplot, figure)


def _aside(arrow: Arrow, arrows: Sequence[Arrow], at: Mapping[str, tuple[float, int]]) -> float:
    """How far from its head's middle an arrow ends: no two in one place, those from the left on the left."""
    sources = sorted((at[one.source][0], one.source) for one in arrows if one.target == arrow.target)
    place = [source for _, source in sources].index(arrow.source)
    return (place - (len(sources) - 1) / 2) * min(0.4, 0.8 / len(sources))


def _matplotlib() -> tuple[Any, Any, Any]:
    try:
        import matplotlib.colors as colors
        import matplotlib.pyplot as pyplot
        import matplotlib.ticker as ticker
    except ImportError as error:
        raise ArgumentError(
            'plot needs matplotlib, which is not installed; run pip install "headscope[notebook]".'
        ) from error
    return pyplot, colors, ticker


@cache
def _paper() -> type[Figure]:
    """A figure whose files hold text as text, whatever the caller's settings."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    class PaperFigure(Figure):
        def savefig(self, *args: Any, **options: Any) -> None:
            with rc_context(_FILES):
                super().savefig(*args, **options)

    return PaperFigure


def _own(pyplot: Any, figure: Figure) -> Figure:
    """Take a figure out of pyplot's hands, so that it is neither shown twice nor kept for ever."""
    pyplot.close(figure)
    return figure
