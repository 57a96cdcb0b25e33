"""A circuit as a drawing: heads in rows by layer, the last on top, and arrows as wide as what they carry.

The SVG needs no fonts, scripts or style sheets. It has a background of its own and the colours of the maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headscope.render.plain import markup as escape
from headscope.render.theme import GROUND, LIGHT

_WIDTH, _ROW, _BOX_W, _BOX_H, _LEFT, _TOP = 720, 116, 116, 44, 64, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A head."""

    label: str
    """Its name; unique in the drawing."""
    layer: int
    """Which row it is in."""
    note: str
    """What is written below its name."""
    colour: str | None = None
    """Of its frame, like `#0072b2`; None for a grey one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrow:
    """From one head to another."""

    source: str
    """Label of the head it leaves."""
    target: str
    """Label of the head it reaches."""
    weight: float
    """From 0 to 1: its width."""
    note: str
    """Shown when pointed at."""
    label: str = ""
    """Is written beside it in a figure."""


def diagram_svg(nodes: Sequence[Node], arrows: Sequence[Arrow]) -> str:
    """The drawing. Without nodes it says that there is no circuit."""
    layers = sorted({node.layer for node in nodes}, reverse=True)
    rows = [[node for node in nodes if node.layer == layer] for layer in layers]
    width = max([_WIDTH, *(_LEFT + len(row) * (_BOX_W + 16) + 16 for row in rows)])
    height = _TOP + max(1, len(layers)) * _ROW - (_ROW - _BOX_H) + _TOP
    at: dict[str, tuple[float, float]] = {}
    titles: list[str] = []
    for number, (layer, row) in enumerate(zip(layers, rows, strict=True)):
        middle = _TOP + number * _ROW + _BOX_H / 2
        titles.append(f'<text x="12" y="{middle + 4:.0f}" font-size="11" fill="{LIGHT.soft}">layer {layer}</text>')
        step = (width - _LEFT - 16) / len(row)
        at |= {node.label: (_LEFT + step * (column + 0.5), middle) for column, node in enumerate(row)}
    lines = [_arrow(arrow, at) for arrow in sorted(arrows, key=lambda arrow: arrow.weight)]
    boxes = [_box(node, *at[node.label]) for node in nodes]
    body = "".join(titles + lines + boxes)
    if not nodes:
        body = f'<text x="{_LEFT}" y="{height / 2:.0f}" fill="{LIGHT.soft}">no circuit found</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'role="img" style="{GROUND}" font-family="system-ui,sans-serif" '
        f'font-size="13">{body}</svg>\n'
    )


def _box(node: Node, x: float, y: float) -> str:
    name, middle = y - 3 if node.note else y + 5, f'x="{x:.0f}" text-anchor="middle"'
    note = f'<text {middle} y="{y + 13:.0f}" font-size="11" fill="{LIGHT.soft}">{escape(node.note)}</text>'
    return (
        f'<rect x="{x - _BOX_W / 2:.0f}" y="{y - _BOX_H / 2:.0f}" width="{_BOX_W}" height="{_BOX_H}" rx="6" '
        f'fill="{LIGHT.box}" stroke="{LIGHT.soft}" stroke-width="0.8"/>'
        f'<text {middle} y="{name:.0f}" font-weight="600" fill="{LIGHT.ink}">{escape(node.label)}</text>'
        + (note if node.note else "")
    )


def _arrow(arrow: Arrow, at: dict[str, tuple[float, float]]) -> str:
    (x0, y0), (x1, y1) = at[arrow.source], at[arrow.target]
    y0, y1 = y0 - _BOX_H / 2, y1 + _BOX_H / 2
    half = (y0 - y1) / 2
    thick = 1 + 5 * arrow.weight
    tip = 6 + thick
    return (
        f'<g fill="none" stroke="{LIGHT.clean}" stroke-opacity="0.8"><title>{escape(arrow.note)}</title>'
        f'<path d="M{x0:.0f} {y0:.0f}C{x0:.0f} {y0 - half:.0f} {x1:.0f} {y1 + half + tip:.0f} {x1:.0f} {y1 + tip:.0f}" '
        f'stroke-width="{thick:.1f}"/>'
        f'<path d="M{x1:.0f} {y1 + 1:.0f}l{tip / 2:.1f} {tip:.1f}h{-tip:.1f}z" fill="{LIGHT.clean}" stroke="none"/></g>'
    )
