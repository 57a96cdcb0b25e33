"""The page of a mosaic: where maps are drawn, and marks as SVG or in matplotlib."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, TypeVar, runtime_checkable

from headscope.errors import ArgumentError
from headscope.render.plain import markup as escape
from headscope.render.theme import GROUND, LIGHT

PAGE, MARGIN, COLUMNS, GUTTER = 1120, 24, 6, 22
MAP = (PAGE - 2 * MARGIN - (COLUMNS - 1) * GUTTER) / COLUMNS
"""Width of a map."""
HEAD, FAMILY, CAPTION, BELOW = 74, 30, 34, 24
"""Heights of the headline, of a family's name, of the words over a map, and of the gap under it."""
CELL, HIGHEST, DEPTH = 14.0, 240.0, 130.0
"""Largest cell, highest map, and height of every map by depth."""


@dataclass(frozen=True, slots=True)
class Box:
    """A filled rectangle; `note` is shown where it is pointed at."""

    x: float | int
    y: float | int
    width: float | int
    height: float | int
    fill: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Word:
    """A line of text; `y` is its base."""

    x: float | int
    y: float | int
    text: str
    size: float | int
    fill: str = LIGHT.ink
    bold: bool = False
    anchor: str = "start"
    note: str = ""


Mark = Box | Word


@runtime_checkable
class _OfFamily(Protocol):
    @property
    def family(self) -> str: ...

    @property
    def n_layers(self) -> int: ...

    @property
    def n_heads(self) -> int: ...


Tile = TypeVar("Tile", bound=_OfFamily)


def short(model: str) -> str:
    """A model's name without the organisation of a hub id, or the folders above a folder."""
    return model.rstrip("/").rsplit("/", 1)[-1]


def by_family(
    tiles: Sequence[Tile],
    y: float,
    *,
    by_depth: bool,
    drawn: Callable[[Tile, float, float], Iterable[Mark]],
    footnotes: Sequence[str],
) -> tuple[list[Mark], float]:
    """Rows of maps, family by family, and lines beneath them: their marks, and the page's height.

    Args:
        tiles: Sorted by family.
        y: Where the first row begins.
        by_depth: As `cell_size`.
        drawn: A tile's words and map, whose upper left corner is at (x, y).
        footnotes: Lines beneath the maps.
    """
    marks: list[Mark] = []
    for family, group in groupby(tiles, key=lambda tile: tile.family):
        kin = list(group)
        marks.append(Box(MARGIN, y, PAGE - 2 * MARGIN, 1, LIGHT.line))
        marks.append(Word(MARGIN, y + 19, family, 12, bold=True))
        marks.append(Word(PAGE - MARGIN, y + 19, n_models(len(kin)), 11, LIGHT.soft, anchor="end"))
        y += FAMILY
        for start in range(0, len(kin), COLUMNS):
            row = kin[start : start + COLUMNS]
            for column, tile in enumerate(row):
                marks.extend(drawn(tile, MARGIN + column * (MAP + GUTTER), y))
            highest = max(one.n_layers * cell_size(one.n_layers, one.n_heads, by_depth=by_depth)[1] for one in row)
            y += CAPTION + highest + BELOW
    for line in footnotes:
        marks.append(Word(MARGIN, y + 6, line, 11, LIGHT.soft))
        y += 17
    return marks, y + 12


def cell_size(n_layers: int, n_heads: int, *, by_depth: bool) -> tuple[float, float]:
    """Width and height: as wide as the column allows, and square unless the map would be too high."""
    width = min(CELL, MAP / max(1, n_heads))
    return width, DEPTH / max(1, n_layers) if by_depth else min(width, HIGHEST / max(1, n_layers))


def n_models(count: int) -> str:
    """`1 model`, `2 models`."""
    return f"{count} model" + ("s" if count > 1 else "")


def cut(text: str, width: float | int, size: float | int) -> str:
    """What fits into a width; letters are about half as wide as high."""
    room = int(width / (0.56 * size))
    return text if len(text) <= room else text[: room - 1] + "…"


def as_svg(marks: Sequence[Mark], height: float) -> str:
    """The marks as one SVG without scripts."""
    body = "".join(_svg(one) for one in marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PAGE} {height:.0f}" width="{PAGE}" '
        f'role="img" style="{GROUND}" font-family="system-ui,sans-serif">'
        f"{body}</svg>"
    )


def _svg(mark: Mark) -> str:
    note = f"<title>{escape(mark.note)}</title>" if mark.note else ""
    if isinstance(mark, Box):
        return (
            f'<rect x="{mark.x:.1f}" y="{mark.y:.1f}" width="{mark.width:.2f}" height="{mark.height:.2f}" '
            f'fill="{mark.fill}">{note}</rect>'
        )
    weight = ' font-weight="600"' if mark.bold else ""
    anchor = "" if mark.anchor == "start" else f' text-anchor="{mark.anchor}"'
    return (
        f'<text x="{mark.x:.1f}" y="{mark.y:.1f}" font-size="{mark.size:g}" fill="{mark.fill}"{weight}{anchor}>'
        f"{escape(mark.text)}{note}</text>"
    )


def as_png(marks: Sequence[Mark], height: float, dots_per_inch: int = 192) -> bytes:
    """The marks by matplotlib; 96 units of the page are an inch.

    Raises:
        ArgumentError: matplotlib is missing.
    """
    from io import BytesIO

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.collections import PatchCollection
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise ArgumentError("a PNG needs matplotlib; install headscope[notebook], or write an .svg.") from error
    figure = Figure(figsize=(PAGE / 96, height / 96), facecolor=LIGHT.paper)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, PAGE), ylim=(height, 0))
    axes.set_axis_off()
    boxes = [mark for mark in marks if isinstance(mark, Box)]
    patches = [Rectangle((box.x, box.y), box.width, box.height) for box in boxes]
    axes.add_collection(PatchCollection(patches, facecolors=[box.fill for box in boxes], linewidths=0))
    align: dict[str, Any] = {"start": "left", "middle": "center", "end": "right"}
    for word in marks:
        if isinstance(word, Word):
            axes.text(
                word.x, word.y, word.text, fontsize=word.size * 0.72, color=word.fill, va="baseline",
                ha=align[word.anchor], fontweight="bold" if word.bold else "normal", parse_math=False,
            )  # fmt: skip
    sink = BytesIO()
    figure.savefig(sink, format="png", dpi=dots_per_inch)
    return sink.getvalue()
