"""The mosaic by role: the layer x head map of every model that has an atlas, each head in the colour of its role.

A head's role is the strongest that it holds, as its atlas says; of a quick atlas, which tests nothing, the role with
the best score. Heads that matter and hold no role are `unexplained`. Models are sorted by family, then by layers and
heads, then by name.

Misleading when: the atlases were not asked for the same roles, or were read with other prompts. The picture says so.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from headscope.errors import ArgumentError, brief
from headscope.evidence.atlas.result import Atlas, HeadSummary, RoleMeaning, Status
from headscope.heads import HeadId
from headscope.records.document import Document
from headscope.records.files import write_whole
from headscope.render.theme import LIGHT
from headscope.sweeps.mosaic_page import (
    CAPTION,
    MAP,
    MARGIN,
    PAGE,
    Box,
    Mark,
    Word,
    as_png,
    as_svg,
    by_family,
    cell_size,
    cut,
    n_models,
    short,
)

UNEXPLAINED = "unexplained"
LETTERED = 9.0
"""Least side of a cell that holds its role's letter."""
_TOP, _LINE, _KEY = 66, 18, 150
"""Height of the headline, of a line of the key, and width of one of its entries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleCell:
    """One head."""

    head: HeadId
    """Which head; of a looped layer its first call."""
    role: str | None
    """Its role; None where it has none."""
    status: Status
    """As its atlas says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTile:
    """One model."""

    model: str
    """Hub id, `demo`, or a folder."""
    revision: str | None
    """Commit of the hub repository, where it is known."""
    family: str
    """Name of the architecture."""
    n_layers: int
    """Decoder layers, with or without attention."""
    n_heads: int
    """Query heads of a layer; the largest number, where layers differ."""
    quick: bool
    """Whether roles are by score alone."""
    asked: tuple[str, ...]
    """Roles that its atlas was asked for."""
    settings: dict[str, Any]
    """Prompts and seed."""
    cells: tuple[RoleCell, ...]
    """Every head, in order."""

    @property
    def name(self) -> str:
        """Without the organisation of a hub id, or the folders above a folder."""
        return short(self.model)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RoleMosaic(Document):
    """The maps of all models, by role."""

    schema: ClassVar[str] = "headscope.role_mosaic/1"

    by_depth: bool
    """Whether layers are placed by relative depth."""
    roles: tuple[RoleMeaning, ...]
    """Every role that an atlas was asked for, in the order of legends."""
    tiles: tuple[RoleTile, ...]
    """The models, by family and size."""

    def to_svg(self) -> str:
        """The picture as one SVG without scripts."""
        return as_svg(*_page(self))

    def save(self, path: str | Path) -> Path:
        """Write the picture or the document: `.svg`, `.png` (needs matplotlib) or `.json`.

        Args:
            path: The file. Its folder is made if need be.

        Raises:
            ArgumentError: another ending, or matplotlib is missing.
        """
        path = Path(path)
        if path.suffix not in (".svg", ".png", ".json"):
            raise ArgumentError(f"{str(path)!r} is no picture by role that is written; end it in .svg, .png or .json.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png":
            write_whole(path, as_png(*_page(self)))
        else:
            write_whole(path, ((self.to_svg() if path.suffix == ".svg" else self.to_json()) + "\n").encode())
        return path

    def __repr__(self) -> str:
        return f"RoleMosaic({len(self.tiles)} models, {len(self.roles)} roles)"

    def _repr_html_(self) -> str:
        return self.to_svg()


def role_mosaic(atlases: str | Path | Sequence[Atlas], *, by_depth: bool = False) -> RoleMosaic:
    """The maps of all models that have an atlas, each head in the colour of its role.

    Args:
        atlases: Atlases, or a folder with `atlas.json`, or with folders that each have one.
        by_depth: Place layers by relative depth, so that models of different depth can be compared.

    Raises:
        ArgumentError: there is no atlas, or one is damaged.
    """
    given = _found(Path(atlases)) if isinstance(atlases, str | Path) else list(atlases)
    if not given:
        raise ArgumentError("no atlas was given; a mosaic by role needs at least one.")
    meanings = {role.name: role for one in given for role in one.roles}
    tiles = sorted(
        map(_tile, given), key=lambda one: (one.family, one.n_layers * one.n_heads, one.model, one.revision or "")
    )
    return RoleMosaic(
        by_depth=by_depth,
        roles=tuple(sorted(meanings.values(), key=lambda role: (role.order, role.name))),
        tiles=tuple(tiles),
    )


def _found(folder: Path) -> list[Atlas]:
    places = [folder / "atlas.json", *sorted(folder.glob("*/atlas.json"))]
    found = [Atlas.load(one) for one in places if one.is_file()]
    if not found:
        raise ArgumentError(
            f"{brief(repr(str(folder)))} holds no atlas; give a folder with results of `headscope atlas --out`."
        )
    return found


def _tile(atlas: Atlas) -> RoleTile:
    return RoleTile(
        model=atlas.model.id,
        revision=atlas.model.revision,
        family=atlas.model.family,
        n_layers=atlas.model.n_layers,
        n_heads=atlas.model.n_heads,
        quick=atlas.quick,
        asked=tuple(role.name for role in atlas.roles),
        settings=atlas.settings,
        cells=tuple(
            RoleCell(head=one.head, role=_role(atlas, one), status=one.status)
            for one in sorted(atlas.heads, key=lambda one: one.head)
            if not one.head.call
        ),
    )


def _role(atlas: Atlas, head: HeadSummary) -> str | None:
    """The strongest role that it holds; where nothing was tested, the one with the best score."""
    if not atlas.quick:
        return head.strongest
    scored = [one for one in atlas.of(head.head) if one.has_score]
    return max(scored, key=lambda one: one.score.mean).role if scored else None


# ---- the picture


def _page(given: RoleMosaic) -> tuple[list[Mark], float]:
    """Its marks and its height."""
    marks: list[Mark] = [
        Word(MARGIN, 34, f"Heads by role, {n_models(len(given.tiles))}", 20, bold=True),
        Word(MARGIN, 54, f"{_rows(given)} downward, heads across; the strongest role of each head", 12, LIGHT.soft),
    ]
    y = float(_TOP)
    marks += _key(given, y)
    y += _LINE * _key_lines(given) + 10
    meaning = {role.name: role for role in given.roles}
    maps, height = by_family(
        given.tiles,
        y,
        by_depth=given.by_depth,
        drawn=lambda tile, left, top: _map(tile, meaning, left, top, by_depth=given.by_depth),
        footnotes=_footnotes(given),
    )
    return marks + maps, height


def _rows(given: RoleMosaic) -> str:
    return "relative depth" if given.by_depth else "layers"


def _entries(given: RoleMosaic) -> list[tuple[str, str, str]]:
    """(letter, colour, words) of each role that a head has, and of heads without one."""
    cells = [cell for tile in given.tiles for cell in tile.cells]
    count = Counter(cell.role for cell in cells)
    found = [(role.letter, role.colour, f"{role.label} {count[role.name]}") for role in given.roles if count[role.name]]
    unexplained = sum(cell.role is None and cell.status == UNEXPLAINED for cell in cells)
    without = count[None] - unexplained
    found += [("?", LIGHT.mark, f"unexplained {unexplained}")] if unexplained else []
    return found + ([("", LIGHT.empty, f"no role {without}")] if without else [])


def _per_line() -> int:
    return (PAGE - 2 * MARGIN) // _KEY


def _key_lines(given: RoleMosaic) -> int:
    return -(-len(_entries(given)) // _per_line())


def _key(given: RoleMosaic, y: float) -> Iterator[Mark]:
    for at, (letter, colour, words) in enumerate(_entries(given)):
        left, top = MARGIN + at % _per_line() * _KEY, y + at // _per_line() * _LINE
        yield Box(left, top, 12, 12, colour)
        yield Word(left + 6, top + 9.5, letter, 9, _ink(colour), bold=True, anchor="middle")
        yield Word(left + 17, top + 10, words, 11)


def _map(tile: RoleTile, meaning: dict[str, RoleMeaning], x: float, y: float, *, by_depth: bool) -> Iterator[Mark]:
    full = f"{tile.model}@{tile.revision}" if tile.revision else tile.model
    yield Word(x, y + 10, cut(tile.name, MAP, 11.5), 11.5, bold=True, note=full)
    size = f"{tile.n_layers} x {tile.n_heads}"
    yield Word(x, y + 25, f"{size} · by score alone" if tile.quick else size, 10.5, LIGHT.soft)
    wide, high = cell_size(tile.n_layers, tile.n_heads, by_depth=by_depth)
    gap = 1.0 if min(wide, high) >= 6 else 0.0
    for cell in tile.cells:
        role = None if cell.role is None else meaning[cell.role]
        unexplained = role is None and cell.status == UNEXPLAINED
        colour = role.colour if role else LIGHT.mark if unexplained else LIGHT.empty
        left, top = x + cell.head.head * wide, y + CAPTION + cell.head.layer * high
        says = role.label if role else cell.status.replace("_", " ")
        yield Box(left, top, wide - gap, high - gap, colour, f"{cell.head} {says}")
        letter = role.letter if role else "?" if unexplained else ""
        if letter and min(wide, high) >= LETTERED:
            size = min(wide, high) * 0.65
            base = top + (high - gap) / 2 + size * 0.36
            yield Word(left + (wide - gap) / 2, base, letter, size, _ink(colour), bold=True, anchor="middle")


def _ink(colour: str) -> str:
    """Dark on light grounds and white on dark ones, by relative luminance (WCAG 2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return LIGHT.ink if luminance > 0.2 else LIGHT.paper


def _footnotes(given: RoleMosaic) -> list[str]:
    notes: list[str] = []
    if len({tile.asked for tile in given.tiles}) > 1:
        notes.append("These atlases were not asked for the same roles; a role that is missing may not have been asked.")
    if len({json.dumps(tile.settings, sort_keys=True) for tile in given.tiles}) > 1:
        notes.append("These atlases read different prompts.")
    if len({tile.quick for tile in given.tiles}) > 1:
        notes.append("Maps by score alone show what heads look at; the others what they were shown to do.")
    return notes
