"""Emergence: the tracker's full record of every checkpoint of a run, as curves, and where induction sets in.

    found = hs.emergence("runs/copy")           a folder of checkpoints, or a hub id with revisions step1000 ...
    found.changes["induction"]                  the step, its width, and both intervals; or why there is none
    found.to_frame()                            step, layer, head, measure, mean, ci_low, ci_high

Every checkpoint reads the same prompts. The curve whose phase change is looked for is the score of the strongest head
at each checkpoint (`headscope.evidence.emergence.change`).

Cost: each checkpoint is loaded, measured as by `Tracker.measure(full=True)`, and let go before the next, so memory is
that of one model.

It misleads where checkpoints are far apart: a rise between two of them has no width. The strongest head is not always
the same head. And that scores and losses change together does not show that one makes the other change: take the heads
out (`headscope verify`).
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from headscope import __version__
from headscope.errors import ArgumentError, HeadscopeError, ModelError
from headscope.evidence.emergence.change import Change, phase_change
from headscope.evidence.emergence.checkpoints import Checkpoint, find_checkpoints
from headscope.evidence.emergence.curves import Curve, CurvePanel, curves_svg
from headscope.evidence.emergence.tracker import N_PROMPTS, PERIOD, ROLES, Snapshot, Tracker
from headscope.heads import HeadId
from headscope.model.load import DTYPES, load
from headscope.probes import Probe, repeated_tokens
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import SavedDocument, parquet
from headscope.records.files import read_document, write_whole

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "headscope.emergence/1"
KEPT = "headscope.emergence_checkpoint/1"
COLUMNS = ("step", "layer", "head", "call", "measure", "mean", "ci_low", "ci_high", "period")
THIN = 24
"""Heads drawn behind the strongest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One checkpoint, measured."""

    name: str
    """Its folder or revision."""
    snapshot: Snapshot
    """What was seen."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Emergence(SavedDocument):
    """A run's checkpoints, measured alike."""

    schema: ClassVar[str] = SCHEMA
    source: str
    """Folder or hub id."""
    model: ModelInfo
    """What all checkpoints are, as the last one read says it."""
    settings: dict[str, Any]
    """`n_prompts`, `period`, `seed` and `dtype`."""
    points: tuple[Point, ...]
    """By step."""
    unread: dict[str, str]
    """Checkpoints that could not be measured, and why."""
    changes: dict[str, Change]
    """The phase change of `induction` and of `previous_token`, of the strongest head at each checkpoint."""
    provenance: Provenance
    """How to repeat it."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Of the checkpoints that were measured."""
        return tuple(point.snapshot.step for point in self.points)

    def curve(self, measure: str) -> tuple[tuple[int, Estimate], ...]:
        """One number per checkpoint that has it: for measures of heads, the strongest head's.

        Args:
            measure: `induction`, `previous_token`, `copying`, `k_composition`, `first_copy_loss_nats`,
                `second_copy_loss_nats` or `in_context_nats`.

        Raises:
            ArgumentError: there is no such measure.
        """
        if measure not in MEASURES:
            raise ArgumentError(f"measure={measure!r} is not known; use one of {', '.join(MEASURES)}.")
        found = ((point.snapshot.step, _values(point.snapshot).get(measure)) for point in self.points)
        return tuple((step, max(values.values(), key=lambda one: one.mean)) for step, values in found if values)

    def to_frame(self) -> pd.DataFrame:
        """Tidy: step, layer, head, call, measure, mean, ci_low, ci_high, period, model. Losses have no layer and head.

        `period` is the length of the repeated run: one head's score differs from that of `hs.scan` where it does.

        `k_composition` is that of the reading head with the earlier head that it reads most of. It has no interval, nor
        has `copying_eigenvalue`.
        """
        import pandas as pd

        period = self.settings.get("period")
        rows = [(*row, period) for point in self.points for row in _rows(point.snapshot)]
        whole = dict.fromkeys(("step", "layer", "head", "call", "period"), "Int64")
        real = dict.fromkeys(("mean", "ci_low", "ci_high"), "float64")
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype(whole | real).assign(model=self.model.id)

    def to_svg(self) -> str:
        """Every measure over the steps, with the phase changes marked."""
        return curves_svg(list(_panels(self)))

    def _repr_html_(self) -> str:
        return self.to_svg()

    def __repr__(self) -> str:
        change = self.changes["induction"].found
        what = "no phase change" if change is None else f"phase change at step {change.step.mean:.0f}"
        return f"Emergence({self.source}: {len(self.points)} checkpoints, {what})"

    def beside(self) -> dict[str, bytes]:
        """See `SavedDocument.beside`."""
        import pyarrow as pa

        table = pa.Table.from_pandas(self.to_frame(), preserve_index=False)
        return {"parquet": parquet(table), "svg": self.to_svg().encode()}


def emergence(
    source: str | Path,
    *,
    revisions: str | Sequence[str] | None = None,
    every: int = 1,
    n_prompts: int = N_PROMPTS,
    period: int = PERIOD,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    keep: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Emergence:
    """Follow a model through the checkpoints of its training.

    Args:
        source: A folder of checkpoints (`step-000400`, `checkpoint-500`), a folder of the hub's cache, or a hub id
            whose branches or tags are checkpoints (`step1000`).
        revisions: Only these, by name or pattern, like `step*000`.
        every: Only steps that are multiples of it.
        n_prompts: Prompts that each checkpoint reads.
        period: Length of the repeated run.
        seed: Of the prompts, the text and the sample of tokens.
        device: As `headscope.load` takes it.
        dtype: As `headscope.load` takes it.
        allow_pickle: As `headscope.load` takes it.
        trust_remote_code: As `headscope.load` takes it.
        keep: A folder to write each finished checkpoint to, and to read it from if it is there already, unchanged and
            measured with the same settings.
        progress: Called with (checkpoints done, checkpoints in all).

    Returns:
        An `Emergence`; checkpoints that cannot be measured are in `unread`, with the reason.

    Raises:
        ArgumentError: no checkpoint in the source, two of one step, or an option that does not fit.
        ModelNotFound: no such folder or hub id.
        ModelError: not one of the checkpoints could be measured.
        HeadscopeError: `keep` cannot be written.
    """
    for name, value, least in (("n_prompts", n_prompts, 1), ("period", period, 3), ("seed", seed, 0)):
        if value < least:
            raise ArgumentError(f"{name}={value}; it needs a whole number from {least} up.")
    if dtype not in DTYPES:
        raise ArgumentError(f"dtype={dtype!r} is not known; use one of {', '.join(DTYPES)}.")
    found = find_checkpoints(source, revisions=revisions, every=every)
    options = {"device": device, "dtype": dtype, "allow_pickle": allow_pickle, "trust_remote_code": trust_remote_code}
    settings = {"n_prompts": n_prompts, "period": period, "seed": seed, "dtype": dtype}
    folder = None if keep is None else Path(keep)
    points: list[Point] = []
    unread = dict(found.passed_over)
    probe: Probe | None = None
    for number, checkpoint in enumerate(found.checkpoints):
        snapshot = kept = None if folder is None else _kept(folder, checkpoint, settings)
        try:
            if snapshot is None:
                snapshot, probe = _measured(checkpoint, probe, settings, options)
            if points:
                _refuse_other_shape(points[0].snapshot, snapshot)
        except HeadscopeError as error:
            unread[checkpoint.name] = str(error)
        else:
            points.append(Point(name=checkpoint.name, snapshot=snapshot))
            if folder is not None and kept is None:
                _keep(folder, checkpoint, settings, snapshot)
        if progress is not None:
            progress(number + 1, len(found.checkpoints))
    if not points:
        name, why = next(iter(unread.items()))
        raise ModelError(f"none of the {len(unread)} checkpoints of {str(source)!r} could be measured; {name}: {why}")
    last = points[-1].snapshot
    result = Emergence(
        source=str(source),
        model=replace(last.model, id=str(source), revision=None),
        settings=settings,
        points=tuple(points),
        unread=unread,
        changes={},
        provenance=last.provenance,
    )
    return replace(result, changes={role: _change(result, role) for role in ROLES})


def _measured(
    checkpoint: Checkpoint, probe: Probe | None, settings: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[Snapshot, Probe]:
    model = load(checkpoint.source, revision=checkpoint.revision, **options)
    if probe is None:
        drawn = {name: settings[name] for name in ("n_prompts", "period", "seed")}
        probe = repeated_tokens(model, **drawn)
    tracker = Tracker(model, probe=probe, seed=settings["seed"])
    return tracker.measure(step=checkpoint.step, full=True), probe


def _refuse_other_shape(first: Snapshot, other: Snapshot) -> None:
    shapes = [(one.model.family, one.model.n_layers, one.model.n_heads) for one in (first, other)]
    if shapes[0] != shapes[1]:
        (family, n_layers, n_heads), (kind, layers, heads) = shapes
        raise ModelError(
            f"it is a {kind} of {layers} layers of {heads} heads, and the first checkpoint a {family} of {n_layers} "
            f"layers of {n_heads} heads; follow one run at a time."
        )


def _change(result: Emergence, role: str) -> Change:
    curve = result.curve(role)
    ends = [value.ci95 for _, value in curve if value.ci95 is not None]
    return phase_change(
        [step for step, _ in curve],
        [value.mean for _, value in curve],
        ends if len(ends) == len(curve) else None,  # a single prompt gives no interval
    )


def _keep(folder: Path, checkpoint: Checkpoint, settings: Mapping[str, Any], snapshot: Snapshot) -> None:
    document = {**_stamp(checkpoint, settings), "snapshot": snapshot.to_dict()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(_place(folder, checkpoint), json.dumps(document, allow_nan=False).encode())
    except OSError as error:
        raise HeadscopeError(
            f"{str(folder)!r} cannot be written: {error.strerror}; fix that, and the same call goes on from there."
        ) from error


def _kept(folder: Path, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Snapshot | None:
    """What is there of a checkpoint that has not changed since, measured in the same way by the same version."""
    place = _place(folder, checkpoint)
    if not place.is_file():
        return None
    try:
        document = read_document(place, place.name)
        snapshot = document.pop("snapshot", None)
        return Snapshot.from_dict(snapshot) if document == _stamp(checkpoint, settings) else None
    except ArgumentError:  # damaged, so measured again
        return None


def _stamp(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": KEPT, "headscope": __version__, "mark": checkpoint.mark, "settings": dict(settings)}


def _place(folder: Path, checkpoint: Checkpoint) -> Path:
    return folder / f"{quote(checkpoint.name, safe='')}.json"


_Values = dict[HeadId | None, Estimate]
"""Of each head, or of the whole model under None."""

HEAD_MEASURES = (*ROLES, "copying", "copying_eigenvalue", "k_composition")
MEASURES = (*HEAD_MEASURES, "first_copy_loss_nats", "second_copy_loss_nats", "in_context_nats")


def _values(snapshot: Snapshot) -> dict[str, _Values]:
    """Every number of a checkpoint, by measure and head."""
    found: dict[str, _Values] = {
        role: {one.head: Estimate(mean=one.mean, ci95=one.ci95) for one in snapshot.heads if one.detector == role}
        for role in ROLES
    }
    losses = {name: getattr(snapshot, name) for name in ("first_copy_loss_nats", "second_copy_loss_nats")}
    if (full := snapshot.full) is not None:
        losses["in_context_nats"] = full.in_context
        found["copying"] = {one.heads[0]: one.direct for one in full.copying}
        found["copying_eigenvalue"] = {
            one.heads[0]: Estimate(mean=one.eigenvalue, ci95=None) for one in full.copying if one.eigenvalue is not None
        }
        found["k_composition"] = {pair.receiver: Estimate(mean=pair.score, ci95=None) for pair in full.composition}
    for name, loss in losses.items():
        if loss is not None:
            found[name] = {None: loss}
    return found


def _rows(snapshot: Snapshot) -> Iterator[tuple[Any, ...]]:
    for measure, values in _values(snapshot).items():
        for head, value in values.items():
            place = (None, None, None) if head is None else (head.layer, head.head, head.call)
            yield (snapshot.step, *place, measure, value.mean, *(value.ci95 or (None, None)))


_TITLES = {
    "induction": ("Induction", "attention on the token after the earlier copy"),
    "previous_token": ("Previous token", "attention on the token before"),
    "copying": ("Copying", "the attended token's share of what is raised"),
    "k_composition": ("K-composition", "with the earlier head that is read most"),
}


def _panels(result: Emergence) -> Iterator[CurvePanel]:
    """One panel for each measure of heads, one for the losses, one for the in-context-learning score."""
    runs = f"; runs of about {result.settings['period']} tokens" if "period" in result.settings else ""
    for measure, (title, unit) in _TITLES.items():
        if result.curve(measure):
            yield CurvePanel(
                title=title,
                unit=f"{unit}; bold: the strongest head{runs if measure in ROLES else ''}",
                curves=(_drawn("strongest head", result.curve(measure)),),
                behind=_heads(result, measure),
                change=result.changes[measure].found if measure in result.changes else None,
            )
    losses = {"first copy": result.curve("first_copy_loss_nats"), "second copy": result.curve("second_copy_loss_nats")}
    if any(losses.values()):
        drawn = tuple(_drawn(label, points) for label, points in losses.items() if points)
        yield CurvePanel(title="Loss on random tokens", unit="nats per token", curves=drawn)
    if points := result.curve("in_context_nats"):
        yield CurvePanel(
            title="In-context learning, on text",
            unit="loss late minus loss early, nats",
            curves=(_drawn("in-context-learning score", points),),
        )


def _drawn(label: str, points: Sequence[tuple[int, Estimate]]) -> Curve:
    return Curve(
        label=label,
        steps=tuple(step for step, _ in points),
        values=tuple(value.mean for _, value in points),
        ci95=tuple(value.ci95 for _, value in points),
    )


def _heads(result: Emergence, measure: str) -> tuple[Curve, ...]:
    """The heads that come highest at some checkpoint."""
    by_head: dict[HeadId | None, list[tuple[int, Estimate]]] = {}
    for point in result.points:
        for head, value in _values(point.snapshot).get(measure, {}).items():
            by_head.setdefault(head, []).append((point.snapshot.step, value))
    highest = sorted(by_head, key=lambda head: -round(max(value.mean for _, value in by_head[head]), 6))
    return tuple(_drawn(str(head), by_head[head]) for head in highest[:THIN])
