"""Curves over the steps of training, as an SVG without scripts.

Panels are side by side, each with its own vertical axis. A panel has a few bold lines with their 95% bands and names,
any number of thin ones behind them, and where there is one the phase change: a line at its step, a band over the
step's interval. Where most checkpoints lie in the first tenth of the run, steps are drawn on a logarithmic axis, step 0
at its left end. Colours are distinguishable by every kind of colour vision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headscope.evidence.emergence.change import PhaseChange
from headscope.render.effects import ticks
from headscope.render.plain import markup as escape
from headscope.render.theme import GROUND, LIGHT

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BELOW, _COLUMNS = 400, 250, 48, 16, 40, 44, 2
_BOLD = (LIGHT.runs[0], LIGHT.runs[2], LIGHT.runs[3])  # the other is near the mark


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line: numbers at steps, ascending."""

    label: str
    """Its name in the panel."""
    steps: tuple[int, ...]
    """Where it is known."""
    values: tuple[float, ...]
    """What it is there."""
    ci95: tuple[tuple[float, float] | None, ...]
    """Ends of the band at each step; None where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePanel:
    """Curves of one unit."""

    title: str
    """What is shown."""
    unit: str
    """Of the vertical axis."""
    curves: tuple[Curve, ...]
    """Drawn bold, at most three."""
    behind: tuple[Curve, ...] = ()
    """Drawn thin, without bands and names."""
    change: PhaseChange | None = None
    """Marked where it is."""


def curves_svg(panels: Sequence[CurvePanel]) -> str:
    """Panels in two columns, over one range of steps."""
    steps = sorted({step for panel in panels for curve in panel.curves for step in curve.steps}) or [0, 1]
    columns = max(1, min(_COLUMNS, len(panels)))
    width, height = columns * _WIDTH, max(1, -(-len(panels) // columns)) * _HEIGHT
    body = [
        f'<g transform="translate({index % columns * _WIDTH},{index // columns * _HEIGHT})">{_panel(panel, steps)}</g>'
        for index, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'style="{GROUND}" font-family="system-ui,sans-serif" font-size="11">'
        f"{''.join(body)}</svg>\n"
    )


def _panel(panel: CurvePanel, steps: Sequence[int]) -> str:
    ends = [end for curve in panel.curves for pair in curve.ci95 if pair is not None for end in pair]
    values = [value for curve in (*panel.curves, *panel.behind) for value in curve.values] + ends
    low, high = min([0.0, *values]), max([0.0, *values])
    marks = ticks(low, high if high > low else low + 1.0, about=4)
    right, under = _WIDTH - _RIGHT, _HEIGHT - _BELOW
    across, places = _across(steps)

    def x(step: int | float) -> float:
        return _LEFT + (right - _LEFT) * across(step)

    def y(value: float) -> float:
        return under - (under - _TOP) * (value - marks[0]) / (marks[-1] - marks[0])

    parts = [
        f'<text x="{_LEFT}" y="18" font-size="13" font-weight="600" fill="{LIGHT.ink}">{escape(panel.title)}</text>',
        f'<text x="{_LEFT}" y="32" fill="{LIGHT.soft}">{escape(panel.unit)}</text>',
    ]
    for mark in marks:
        parts.append(
            f'<line x1="{_LEFT}" x2="{right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}" stroke="{LIGHT.line}"/>'
            f'<text x="{_LEFT - 6}" y="{y(mark) + 4:.1f}" text-anchor="end" fill="{LIGHT.soft}">{mark:g}</text>'
        )
    for place in places:
        parts.append(
            f'<text x="{x(place):.1f}" y="{under + 15}" text-anchor="middle" fill="{LIGHT.soft}">{_short(place)}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + right) / 2}" y="{under + 31}" text-anchor="middle" fill="{LIGHT.soft}">step</text>'
    )
    if panel.change is not None:
        parts.append(_marked(panel.change, x, under))
    parts += [_path(curve, x, y, f'stroke="{LIGHT.behind}" stroke-width="0.8"') for curve in panel.behind]
    for number, curve in enumerate(panel.curves):
        colour = _BOLD[number]
        parts.append(_band(curve, x, y, colour) + _path(curve, x, y, f'stroke="{colour}" stroke-width="2"'))
        if len(curve.steps) <= 40:
            parts += [
                f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.4" fill="{colour}"/>'
                for step, value in zip(curve.steps, curve.values, strict=True)
            ]
    parts += _names(panel, x, y)
    return "".join(parts)


def _across(steps: Sequence[int]) -> tuple[Callable[[float], float], list[float]]:
    """Place of a step from 0 to 1, and the steps that the axis names."""
    first, last = steps[0], steps[-1]
    positive = [step for step in steps if step > 0]
    if len(positive) > 2 and positive[len(positive) // 2] < last / 10:
        least = math.log(positive[0] / 2 if first == 0 else positive[0])
        span = math.log(last) - least
        powers = [10.0**n for n in range(math.ceil(math.log10(positive[0])), math.floor(math.log10(last)) + 1)]
        named = ([0.0] if first == 0 else []) + [one for one in powers if one >= positive[0]]
        return lambda step: ((math.log(step) if step > 0 else least) - least) / span, named
    span = max(1, last - first)
    named = [place for place in ticks(float(first), float(first + span)) if first <= place <= last]
    return lambda step: (step - first) / span, named


def _short(step: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if step >= 10 * size or (step >= size and step % size == 0):
            return f"{step / size:g}{letter}"
    return f"{step:g}"


def _path(curve: Curve, x: Callable[[float], float], y: Callable[[float], float], style: str) -> str:
    points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(curve.steps, curve.values, strict=True))
    return f'<polyline points="{points}" fill="none" {style}><title>{escape(curve.label)}</title></polyline>'


def _band(curve: Curve, x: Callable[[float], float], y: Callable[[float], float], colour: str) -> str:
    known = [(step, pair) for step, pair in zip(curve.steps, curve.ci95, strict=True) if pair is not None]
    if len(known) < 2:
        return ""
    up = [f"{x(step):.1f},{y(high):.1f}" for step, (_, high) in known]
    down = [f"{x(step):.1f},{y(low):.1f}" for step, (low, _) in reversed(known)]
    return f'<polygon points="{" ".join(up + down)}" fill="{colour}" fill-opacity="0.15"/>'


def _marked(change: PhaseChange, x: Callable[[float], float], under: int) -> str:
    low, high = change.step.ci95 or (change.step.mean, change.step.mean)
    at, left, right = x(change.step.mean), x(low), x(high)
    anchor, beside = ("end", left - 5) if at > _WIDTH * 0.6 else ("start", right + 5)
    return (
        f'<rect x="{left:.1f}" width="{max(1.0, right - left):.1f}" y="{_TOP}" height="{under - _TOP}" '
        f'fill="{LIGHT.mark}" fill-opacity="0.18"/>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{under}" stroke="{LIGHT.mark}" stroke-dasharray="4 3"/>'
        f'<text x="{beside:.1f}" y="{_TOP + 10}" text-anchor="{anchor}" fill="{LIGHT.mark}">'
        f"step {change.step.mean:.0f} [{low:.0f}, {high:.0f}]</text>"
    )


def _names(panel: CurvePanel, x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    """The bold curves' names at the upper right of the panel, in their colours."""
    named = [(curve.label, colour) for curve, colour in zip(panel.curves, _BOLD, strict=False)]
    parts, at = list[str](), float(_WIDTH - _RIGHT)
    for label, colour in reversed(named if len(named) > 1 else []):
        parts.append(f'<text x="{at:.0f}" y="32" text-anchor="end" fill="{colour}">{escape(label)}</text>')
        at -= 7 * len(label) + 12
    return parts
