"""Effects with their intervals, one row each, as an SVG without scripts.

A row is a label, a dot at the mean, a bar over the 95% interval, and a word. Zero has a line of its own. The colours
are those of the maps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from headscope.render.plain import markup as escape
from headscope.render.theme import GROUND, LIGHT

_ROW, _LABEL, _AXIS, _WORD, _TOP, _BELOW = 20, 96, 360, 190, 34, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One effect."""

    label: str
    """What was changed, like `L1H0`."""
    mean: float
    """Where the dot is."""
    ci95: tuple[float, float] | None
    """Ends of the bar; None draws none."""
    word: str
    """What is written behind it, like a verdict."""
    control: bool = False
    """Drawn hollow: the reference for the others."""
    colour: str | None = None
    """Of its dot and bar in a figure, like `#0072b2`; None for the usual one."""


def intervals_svg(rows: Sequence[Row], *, title: str, axis: str) -> str:
    """The rows from top to bottom over one axis, which holds every interval and zero."""
    low, high = span(rows)
    places = ticks(low, high)
    low, high = min(low, places[0]), max(high, places[-1])
    height = _TOP + _ROW * max(1, len(rows)) + _BELOW
    width = _LABEL + _AXIS + _WORD

    def x(value: float) -> float:
        return _LABEL + _AXIS * (value - low) / (high - low)

    under = _TOP + _ROW * max(1, len(rows)) + 4
    parts = [f'<text x="12" y="20" font-size="13" font-weight="600" fill="{LIGHT.ink}">{escape(title)}</text>']
    for place in places:
        stroke = LIGHT.soft if place == 0 else LIGHT.line
        parts.append(
            f'<line x1="{x(place):.1f}" x2="{x(place):.1f}" y1="{_TOP}" y2="{under}" stroke="{stroke}"/>'
            f'<text x="{x(place):.1f}" y="{under + 13}" text-anchor="middle" fill="{LIGHT.soft}">{place:g}</text>'
        )
    parts.append(f'<text x="{_LABEL}" y="{under + 29}" fill="{LIGHT.soft}">{escape(axis)}</text>')
    if not rows:
        parts.append(f'<text x="{_LABEL}" y="{_TOP + 14}" fill="{LIGHT.soft}">nothing was measured</text>')
    for number, row in enumerate(rows):
        y = _TOP + _ROW * number + _ROW / 2
        bar = "" if row.ci95 is None else _bar(x(row.ci95[0]), x(row.ci95[1]), y)
        parts.append(
            f"<g><title>{escape(note(row))}</title>"
            f'<text x="{_LABEL - 10}" y="{y + 4:.0f}" text-anchor="end" fill="{LIGHT.ink}">{escape(row.label)}</text>'
            f"{bar}"
            f'<circle cx="{x(row.mean):.1f}" cy="{y:.0f}" r="4" fill="{LIGHT.paper if row.control else LIGHT.clean}" '
            f'stroke="{LIGHT.clean}" stroke-width="1.5"/>'
            f'<text x="{_LABEL + _AXIS + 14}" y="{y + 4:.0f}" fill="{LIGHT.soft}">{escape(row.word)}</text></g>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'style="{GROUND}" font-family="system-ui,sans-serif" font-size="11">'
        f"{''.join(parts)}</svg>"
    )


def span(rows: Sequence[Row]) -> tuple[float, float]:
    """From the least to the greatest end of an interval, zero included, never empty."""
    ends = [end for row in rows for end in (row.mean, *(row.ci95 or ()))]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    return (low, high) if high > low else (low, low + 1.0)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, that enclose an interval which is not empty."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    return [
        round(step * number, 12) for number in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)
    ]


def note(row: Row) -> str:
    """A row in words."""
    interval = "" if row.ci95 is None else f" [{row.ci95[0]:.3f}, {row.ci95[1]:.3f}]"
    return f"{row.label}: {row.mean:.3f}{interval} {row.word}".rstrip()


def _bar(x0: float, x1: float, y: float) -> str:
    return f'<line x1="{x0:.1f}" x2="{x1:.1f}" y1="{y:.0f}" y2="{y:.0f}" stroke="{LIGHT.clean}" stroke-width="2"/>'
