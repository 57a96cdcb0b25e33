"""The mosaic: the layer x head map of one role for every model of a store, side by side on one scale.

Models are sorted by family, then by size, then by name and revision, so that what a family shares and what grows with
size can be seen. Each cell is a head's mean score, layer 0 at the top; with `by_depth` every map has the same height,
so that layers are placed by relative depth. Of several scans of one model and revision the latest is shown.

Misleading when: the scans of a store read different probes. Scores move with the probe; the document says which each
model read.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.page.html import page_html
from headscope.records.document import Document
from headscope.records.files import write_whole
from headscope.render.theme import LIGHT, shade
from headscope.sweeps.mosaic_page import (
    CAPTION,
    HEAD,
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
from headscope.sweeps.store import Store, open_store

if TYPE_CHECKING:
    import pandas as pd

SHADES = 50
"""Steps of the colour scale in a picture: neighbours of one shade are drawn as one."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tile:
    """One model of the mosaic."""

    model: str
    """Hub id, `demo`, or a folder."""
    revision: str | None
    """As the sweep was asked for it."""
    family: str
    """Transformers' name of the architecture."""
    n_parameters: int
    """Numbers in its weights."""
    n_layers: int
    """Decoder layers, with or without attention."""
    n_heads: int
    """Query heads of a layer; the largest number, where layers differ."""
    support: str
    """The self-check's verdict."""
    probe: dict[str, Any]
    """What it read."""
    values: tuple[tuple[float | None, ...], ...]
    """[layer][head]: mean score; None where there is no such head. Of a looped layer, its best call."""
    ci95: tuple[tuple[tuple[float, float] | None, ...], ...]
    """Their 95% intervals; None where there is none."""
    best: HeadId | None
    """The head with the highest score; None without any head."""

    @property
    def name(self) -> str:
        """Without the organisation of a hub id, or the folders above a folder."""
        return f"{short(self.model)} @{self.revision}" if self.revision else short(self.model)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Mosaic(Document):
    """The maps of all models for one role."""

    schema: ClassVar[str] = "headscope.mosaic/1"

    detector: str
    """Which role."""
    by_depth: bool
    """Whether layers are placed by relative depth."""
    tiles: tuple[Tile, ...]
    """The models, by family and size."""
    failed: tuple[str, ...]
    """Models whose scan failed, and who are therefore not shown."""

    def to_svg(self) -> str:
        """The picture as one SVG without scripts."""
        page = _Page(self)
        return as_svg(page.marks, page.height)

    def save(self, path: str | Path, *, others: Sequence[Mosaic] = ()) -> Path:
        """Write the picture, a page or the document: `.svg`, `.png` (needs matplotlib), `.html` or `.json`.

        Args:
            path: The file. Its folder is made if need be.
            others: Mosaics of other roles of the same store, which the page can switch to.

        Raises:
            ArgumentError: another ending, or matplotlib is missing.
        """
        path = Path(path)
        if path.suffix not in (".svg", ".png", ".html", ".json"):
            raise ArgumentError(f"{str(path)!r} is no picture that is written; end it in .svg, .png, .html or .json.")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".svg":
            write_whole(path, (self.to_svg() + "\n").encode())
        elif path.suffix == ".html":
            document = self.to_dict() | {"others": [other.to_dict() for other in others]}
            write_whole(path, page_html(document, title="The mosaic - headscope").encode())
        elif path.suffix == ".json":
            write_whole(path, (self.to_json() + "\n").encode())
        else:
            page = _Page(self)
            write_whole(path, as_png(page.marks, page.height))
        return path

    def __repr__(self) -> str:
        return f"Mosaic({self.detector}: {len(self.tiles)} models)"

    def _repr_html_(self) -> str:
        return self.to_svg()


def mosaic(store: Store | str | Path, *, detector: str = "induction", by_depth: bool = False) -> Mosaic:
    """The maps of one role for all models of a store.

    Args:
        store: What `open_store` gives or takes.
        detector: Which role.
        by_depth: Place layers by relative depth, so that models of different depth can be compared.

    Raises:
        ArgumentError: there is no store, or no scan of this role in it.
    """
    kept = store if isinstance(store, Store) else open_store(store)
    rows = kept.to_frame("scan")
    jobs = sorted(
        (job for job in kept.to_arrow("jobs").to_pylist() if job["what"] == "scan"), key=lambda job: job["finished"]
    )
    have = _roles(rows)
    if detector not in have:
        instead = f"it has {', '.join(have)}" if have else "it has no scan at all"
        raise ArgumentError(f"the store {kept.path!r} has no scan of {detector!r}; {instead}.")
    scores: dict[Any, Any] = dict(iter(rows[rows["detector"] == detector].groupby("job")))
    latest = {(job["model"], job["revision"]): job for job in jobs if job["job"] in scores}
    tiles = [_tile(job, scores[job["job"]]) for job in latest.values()]
    missing = [
        f"{job['model']}@{job['revision']}" if job["revision"] else job["model"]
        for job in jobs
        if job["status"] == "failed" and (job["model"], job["revision"]) not in latest
    ]
    tiles.sort(key=lambda tile: (tile.family, tile.n_parameters, _natural(tile.model), _natural(tile.revision or "")))
    return Mosaic(detector=detector, by_depth=by_depth, tiles=tuple(tiles), failed=tuple(dict.fromkeys(missing)))


def roles(store: Store | str | Path) -> list[str]:
    """The roles that the scans of a store have scores for."""
    kept = store if isinstance(store, Store) else open_store(store)
    return _roles(kept.to_frame("scan"))


def _roles(rows: pd.DataFrame) -> list[str]:
    return sorted(rows["detector"].unique())


def _natural(text: str) -> list[tuple[int, str]]:
    """So that step 512 comes before step 1000."""
    return [(int(part), "") if place % 2 else (0, part) for place, part in enumerate(re.split(r"([0-9]{1,9})", text))]


def _tile(job: dict[str, Any], scores: pd.DataFrame) -> Tile:
    falling = scores.sort_values(["mean", "layer", "head"], ascending=[False, True, True])
    best = falling.iloc[0]
    place: dict[tuple[int, int], tuple[float, tuple[float, float] | None]] = {}
    columns = (falling[name] for name in ("layer", "head", "mean", "ci_low", "ci_high"))
    for layer, head, mean, low, high in zip(*columns, strict=True):
        place.setdefault((layer, head), (mean, (low, high) if low == low else None))  # nan is no interval
    n_layers, n_heads = int(job["n_layers"]), int(job["n_heads"])

    def at(layer: int, head: int) -> tuple[float | None, tuple[float, float] | None]:
        return place.get((layer, head), (None, None))

    return Tile(
        model=job["model"],
        revision=job["revision"],
        family=job["family"],
        n_parameters=int(job["n_parameters"]),
        n_layers=n_layers,
        n_heads=n_heads,
        support=job["support"],
        probe=json.loads(job["settings"]),
        values=tuple(tuple(at(layer, head)[0] for head in range(n_heads)) for layer in range(n_layers)),
        ci95=tuple(tuple(at(layer, head)[1] for head in range(n_heads)) for layer in range(n_layers)),
        best=HeadId(int(best["layer"]), int(best["head"]), int(best["call"])),
    )


class _Page:
    """Where everything is drawn: a headline with the scale, then family by family rows of maps."""

    def __init__(self, given: Mosaic) -> None:
        self.mosaic = given
        self.marks: list[Mark] = list(self._headline())
        maps, self.height = by_family(
            given.tiles, float(HEAD), by_depth=given.by_depth, drawn=self._map, footnotes=self._footnotes()
        )
        self.marks += maps

    def _headline(self) -> Iterator[Mark]:
        role = self.mosaic.detector.replace("_", " ")
        rows = "relative depth downward" if self.mosaic.by_depth else "layers downward"
        yield Word(MARGIN, 34, f"{role[0].upper()}{role[1:]}, {n_models(len(self.mosaic.tiles))}", 20, bold=True)
        how = f"mean score of each head: {rows}, heads across; under each name its size and its best head"
        yield Word(MARGIN, 54, how, 12, LIGHT.soft)
        left, width, steps = PAGE - MARGIN - 200, 200, 40
        for step in range(steps):
            yield Box(left + step * width / steps, 24, width / steps + 0.3, 10, shade((step + 0.5) / steps))
        for share in (0.0, 0.5, 1.0):
            anchor = {0.0: "start", 0.5: "middle", 1.0: "end"}[share]
            yield Word(left + share * width, 48, f"{share:g}", 10, LIGHT.soft, anchor=anchor)

    def _map(self, tile: Tile, x: float, y: float) -> Iterator[Mark]:
        full = f"{tile.model}@{tile.revision}" if tile.revision else tile.model
        yield Word(x, y + 10, cut(tile.name, MAP, 11.5), 11.5, bold=True, note=full)
        size = f"{_size(tile.n_parameters)} · {tile.n_layers} x {tile.n_heads}"
        top = max((value for row in tile.values for value in row if value is not None), default=None)
        best = "" if tile.best is None or top is None else f" · {tile.best} {top:.2f}"
        yield Word(x, y + 25, f"{size}{best}", 10.5, LIGHT.soft)
        cell_w, cell_h = cell_size(tile.n_layers, tile.n_heads, by_depth=self.mosaic.by_depth)
        gap = 1.0 if min(cell_w, cell_h) >= 6 else 0.0
        for layer, row in enumerate(tile.values):
            place = y + CAPTION + layer * cell_h
            for start, end, value in _runs(row, merged=gap == 0):
                heads = str(HeadId(layer, start)) if end - start == 1 else f"{HeadId(layer, start)} to H{end - 1}"
                note = f"{heads} {value:.2f}"
                yield Box(x + start * cell_w, place, (end - start) * cell_w - gap, cell_h - gap, shade(value), note)

    def _footnotes(self) -> list[str]:
        notes: list[str] = []
        if self.mosaic.failed:
            names = ", ".join(map(short, self.mosaic.failed))
            notes.append(cut(f"Not shown, since their scan failed: {names}", PAGE - 2 * MARGIN, 11))
        probes = {json.dumps(tile.probe, sort_keys=True) for tile in self.mosaic.tiles}
        if len(probes) > 1:
            notes.append(f"These scans read {len(probes)} different probes; scores compare on the same probe only.")
        return notes


def _runs(row: tuple[float | None, ...], *, merged: bool) -> Iterator[tuple[int, int, float]]:
    """(first head, one past the last, score) of heads side by side with one shade."""
    at = 0
    for of_scale, group in groupby(row, key=lambda value: None if value is None else round(value * SHADES)):
        values = list(group)
        step = len(values) if merged else 1
        for start in range(0, len(values), step):
            first = values[start]
            if of_scale is not None and first is not None:
                yield at + start, at + start + step, of_scale / SHADES if merged and step > 1 else first
        at += len(values)


def _size(count: int) -> str:
    for unit, word in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{word}"
    return str(count)
