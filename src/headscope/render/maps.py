"""A layer x head map, as an SVG without scripts and as characters.

Both take plain numbers in [0, 1]; None leaves a cell empty. The colours run from paper to dark blue in even steps of
lightness, which every kind of colour vision can read; the SVG keeps its own background, so it also sits well on a
dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headscope.render.plain import markup as escape
from headscope.render.theme import GROUND, LIGHT, shade

SHADES = " ░▒▓█"
"""Characters for [0, 0.2), [0.2, 0.4), ... [0.8, 1]."""

_CELL, _GAP, _LEFT, _TOP, _BELOW = 18, 2, 44, 30, 34


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One map: a title, a value for each layer and head, and a line of text for each cell."""

    title: str
    """What is shown, like `induction`."""
    values: Sequence[Sequence[float | None]]
    """[layer][head], in [0, 1]; None where there is no such head."""
    notes: Sequence[Sequence[str]]
    """[layer][head]: what a reader sees on pointing at the cell."""


def heatmap_svg(panels: Sequence[Panel], *, columns: int = 3) -> str:
    """Maps side by side as one SVG element: layer 0 at the top, head 0 at the left."""
    n_heads = max((len(row) for panel in panels for row in panel.values), default=0)
    n_layers = max((len(panel.values) for panel in panels), default=0)
    columns = max(1, min(columns, len(panels), 90 // max(1, n_heads)))
    panel_w = max(_LEFT + n_heads * _CELL + 16, 190)
    panel_h = _TOP + n_layers * _CELL + _BELOW
    rows = -(-len(panels) // columns)
    width, height = columns * panel_w, rows * panel_h
    body = [
        _panel(panel, index % columns * panel_w, index // columns * panel_h, n_layers, n_heads)
        for index, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'style="{GROUND}" font-family="system-ui,sans-serif" font-size="11">'
        f"{''.join(body)}</svg>"
    )


def _panel(panel: Panel, left: int, top: int, n_layers: int, n_heads: int) -> str:
    parts = [
        f'<g transform="translate({left},{top})">'
        f'<text x="{_LEFT}" y="18" font-size="13" font-weight="600" fill="{LIGHT.ink}">{escape(panel.title)}</text>'
    ]
    every = max(1, -(-n_layers // 32)), max(1, -(-n_heads // 16))
    for layer, (row, notes) in enumerate(zip(panel.values, panel.notes, strict=True)):
        y = _TOP + layer * _CELL
        if layer % every[0] == 0:
            parts.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end" fill="{LIGHT.soft}">L{layer}</text>')
        for head, (value, note) in enumerate(zip(row, notes, strict=True)):
            size = _CELL - _GAP
            fill = LIGHT.empty if value is None else shade(value)
            parts.append(
                f'<rect x="{_LEFT + head * _CELL}" y="{y}" width="{size}" height="{size}" rx="2" fill="{fill}">'
                f"<title>{escape(note)}</title></rect>"
            )
    under = _TOP + n_layers * _CELL + 10
    parts += [
        f'<text x="{_LEFT + head * _CELL + 8}" y="{under}" text-anchor="middle" fill="{LIGHT.soft}">{head}</text>'
        for head in range(0, n_heads, every[1])
    ]
    return "".join([*parts, "</g>"])


def heatmap_text(panel: Panel) -> str:
    """One map in characters, two per head: a darker block is a higher score."""
    n_heads = max((len(row) for row in panel.values), default=0)
    label = len(f"L{max(0, len(panel.values) - 1)}")
    ticks = "".join(f"{head:<10d}" for head in range(0, n_heads, 5))
    lines = [f"{panel.title}   (each step of {SHADES[1:]} is 0.2)", " " * (label + 1) + ticks.rstrip()]
    for layer, row in enumerate(panel.values):
        cells = "".join("··" if value is None else _shade(value) * 2 for value in row)
        lines.append(f"{f'L{layer}':>{label}} {cells}")
    return "\n".join(lines)


def _shade(value: float) -> str:
    return SHADES[min(len(SHADES) - 1, max(0, int(value * len(SHADES))))]
