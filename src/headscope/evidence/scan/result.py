"""Frozen results with provenance, as objects, JSON, Parquet and frames.

A result is data: it was computed once, and every table, page and picture is rendered from it. Files are written under
a temporary name and renamed, so a reader never sees half of one.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from headscope.errors import ArgumentError, brief
from headscope.evidence.scan.elsewhere import NNSIGHT, TRANSFORMERLENS, elsewhere
from headscope.heads import HeadId, ranking
from headscope.records.codec import decode, encode, refuse_repeated
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import SavedDocument, parquet
from headscope.render.figures import maps_figure
from headscope.render.maps import Panel, heatmap_svg

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


THRESHOLD = 0.4
"""A head is found for a role when its mean score reaches this."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HeadScore:
    """How much of its attention one head puts on one detector's targets."""

    head: HeadId
    """Which head."""
    detector: str
    """Which role."""
    mean: float
    """Attention on the targets, mean over queries and prompts, in [0, 1]."""
    ci95: tuple[float, float] | None
    """95% interval over prompts; None from a single prompt."""
    chance: float
    """What uniform attention over the keys that each query may see would score."""
    control: float | None
    """The same targets on the matched control; None where the probe has none."""
    selectivity: Estimate | None
    """Score minus control, paired by prompt; None where the probe has no control."""
    n_prompts: int
    """Prompts that have targets."""

    def reaches(self, threshold: float = THRESHOLD, *, content: bool, lost_on_control: float = 0.5) -> bool:
        """Whether the mean reaches `threshold` and, for a role about content, that share of it is gone on the control.

        Where there is no control, the mean alone decides.
        """
        if self.mean < threshold:
            return False
        return not content or self.selectivity is None or self.selectivity.mean >= lost_on_control * self.mean

    def __repr__(self) -> str:
        interval = "" if self.ci95 is None else f" [{self.ci95[0]:.2f}, {self.ci95[1]:.2f}]"
        return f"HeadScore({self.head}, {self.mean:.2f}{interval})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A detector as a result remembers it."""

    name: str
    """Its name."""
    needs_control: bool
    """Whether the role is about content, so that a head must lose most of its score on the control to have it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What the measurement cost."""

    wall_s: float
    """Seconds from the first prompt to the last score; loading is not counted."""
    tokens: int
    """Tokens read, controls included."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Scan(SavedDocument):
    """Every head's score for every role."""

    schema: ClassVar[str] = "headscope.scan/1"
    model: ModelInfo
    """Which model."""
    probe: dict[str, Any]
    """How the prompts were made."""
    roles: tuple[Role, ...]
    """The detectors, in the order they were asked for."""
    scores: tuple[HeadScore, ...]
    """One for each head and role, ordered by layer, head, call and role."""
    unscored: dict[str, str]
    """Roles without a score, and why."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""

    @property
    def widest(self) -> float | None:
        """The longest side of any interval, of a score or its selectivity; None from a single prompt."""
        return widest_of(self.scores)

    def heads(self, detector: str = "induction", threshold: float = THRESHOLD) -> list[HeadScore]:
        """Heads found for a role, best first.

        A head is found when its mean reaches `threshold` and, for a role about content, at least half of its mean is
        gone on the control (selectivity >= mean / 2): a head that looks at the place and not at the token is not.
        Where there is no control, on your own tokens, the mean alone decides.

        Raises:
            ArgumentError: this scan has no such detector, or no score for it; the message says why.
        """
        role = self._role(detector)
        return [score for score in self.ranked(detector) if score.reaches(threshold, content=role.needs_control)]

    def ranked(self, detector: str = "induction") -> list[HeadScore]:
        """Every head's score for a role, best first, whether found or not."""
        self._role(detector)
        of_role = [score for score in self.scores if score.detector == detector]
        return sorted(of_role, key=lambda score: ranking(score.mean, score.head))

    def _role(self, detector: str) -> Role:
        for role in self.roles:
            if role.name == detector:
                return role
        if detector in self.unscored:
            raise ArgumentError(f"this scan has no score for {detector}: {self.unscored[detector]}.")
        raise ArgumentError(
            f"this scan has no detector {detector!r}; it has {', '.join(role.name for role in self.roles)}."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per head and role: layer, head, call, detector, mean, ci_low, ci_high, chance, ..., model."""
        import pandas as pd

        frame = pd.DataFrame([_row(score) for score in self.scores], columns=list(COLUMNS))
        kinds = {name: "int64" if name in WHOLE else "float64" for name in COLUMNS if name != "detector"}
        return frame.astype(kinds).assign(model=pd.Series(self.model.id, index=frame.index, dtype=object))

    def body(self) -> dict[str, Any]:
        """What the document holds: scores by head, and the heads found for each role."""
        return {
            "model": encode(self.model),
            "probe": dict(self.probe),
            "detectors": [encode(role) for role in self.roles],
            "heads": [
                {**encode(head), "scores": {score.detector: _numbers(score) for score in scores}}
                for head, scores in self._by_head().items()
            ],
            "found": {
                role.name: [{**encode(score.head), "score": score.mean} for score in self.heads(role.name)]
                for role in self.roles
            },
            "unscored": dict(self.unscored),
            "provenance": encode(self.provenance),
            "timing": encode(self.timing),
        }

    def _by_head(self) -> dict[HeadId, list[HeadScore]]:
        grouped: dict[HeadId, list[HeadScore]] = {}
        for score in self.scores:
            grouped.setdefault(score.head, []).append(score)
        return grouped

    @classmethod
    def of_body(cls, body: dict[str, Any]) -> Scan:
        """The scan that `body` wrote.

        Raises:
            ArgumentError: the body is damaged.
        """
        try:
            return cls(
                model=decode(ModelInfo, body["model"]),
                probe=dict(body["probe"]),
                roles=tuple(decode(Role, role) for role in body["detectors"]),
                scores=tuple(
                    decode(HeadScore, {**place, "detector": detector, **numbers})
                    for place in ({**entry} for entry in body["heads"])
                    for detector, numbers in place.pop("scores").items()
                ),
                unscored=dict(body["unscored"]),
                provenance=decode(Provenance, body["provenance"]),
                timing=decode(Timing, body["timing"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArgumentError(f"the scan document is damaged ({brief(error)}); write it again.") from error

    def refuse_damage(self) -> None:
        """Raise an ArgumentError where a head has two scores for one role."""
        for role in {score.detector for score in self.scores}:
            refuse_repeated(score.head for score in self.scores if score.detector == role)

    def to_parquet(self) -> bytes:
        """The frame as a Parquet file, with the rest of the document in its metadata under `headscope`."""
        import pyarrow as pa

        rows = [{**_row(score), "model": self.model.id} for score in self.scores]
        table = pa.Table.from_pylist(rows, schema=_arrow_schema())
        about = {key: value for key, value in self.to_dict().items() if key not in ("heads", "found")}
        return parquet(table, about)

    def to_transformerlens(self, detector: str = "induction") -> str:
        """Python code that measures the best head of a role again, by TransformerLens's own hooks.

        It draws the same prompts, reads `hook_pattern` and ends with the number in `score`. Where a model object was
        scanned, the code takes it from a variable `model`.

        Raises:
            ArgumentError: this scan has no such detector; a detector or tokens of your own, of which a scan keeps no
                more than the name.
        """
        return self._elsewhere(TRANSFORMERLENS, detector)

    def to_nnsight(self, detector: str = "induction") -> str:
        """The same by nnsight: a trace of the layer's attention module, which must run eagerly to give its pattern.

        nnsight reads the source of a trace, so save the code to a file or run it in a notebook cell.

        Raises:
            ArgumentError: as `to_transformerlens`; or the scan's support is not `exact` through our attention function,
                so that it is not known whether the model's attention modules return their pattern.
        """
        if self.model.path != "interface" or self.model.support != "exact":
            raise ArgumentError(
                f"it is not known that the attention modules of {self.model.id} give nnsight their pattern "
                f"({self.model.support}: {self.model.reason}); use to_transformerlens."
            )
        return self._elsewhere(NNSIGHT, detector)

    def _elsewhere(self, template: str, detector: str) -> str:
        best = self.ranked(detector)[0]
        return elsewhere(
            template,
            detector=detector,
            head=best.head,
            mean=best.mean,
            probe=self.probe,
            info=self.model,
            dtype=self.provenance.dtype,
        )

    def __repr__(self) -> str:
        found = ", ".join(f"{len(self.heads(role.name))} {role.name}" for role in self.roles if self.heads(role.name))
        return f"Scan({self.model.id}: {found or 'no head found'}, support {self.model.support})"

    def panel(self, detector: str = "induction") -> Panel:
        """The scores of one role as a layer x head map; in looped models the best call of each head."""
        best: dict[tuple[int, int], HeadScore] = {}
        for score in reversed(self.ranked(detector)):
            best[score.head.layer, score.head.head] = score
        places = [[(layer, head) for head in range(self.model.n_heads)] for layer in range(self.model.n_layers)]
        return Panel(
            title=detector,
            values=[[best[place].mean if place in best else None for place in row] for row in places],
            notes=[[_note(best.get(place), place) for place in row] for row in places],
        )

    def plot(self, *detectors: str, width_in: float | None = None) -> Figure:
        """The maps as a matplotlib figure, for all roles or those named; it needs the extra `notebook`.

        Args:
            detectors: Names of roles.
            width_in: Width in inches, like 3.25 or 6.75 for one or both columns of a paper; by default what cells need.

        Raises:
            ArgumentError: this scan has no such detector; matplotlib is not installed.
        """
        return maps_figure(
            [self.panel(name) for name in detectors or [role.name for role in self.roles]], width_in=width_in
        )

    def _repr_html_(self) -> str:
        return heatmap_svg([self.panel(role.name) for role in self.roles])

    def beside(self) -> dict[str, bytes]:
        """See `SavedDocument.beside`."""
        return {"parquet": self.to_parquet()}


def widest_of(scores: Iterable[HeadScore]) -> float | None:
    """The longest side of any interval, of a score or its selectivity; None where there is none."""
    estimates = [one for score in scores for one in (score, score.selectivity) if one is not None]
    # The longer side: the other may be cut off where no score can lie.
    sides = [max(one.ci95[1] - one.mean, one.mean - one.ci95[0]) for one in estimates if one.ci95 is not None]
    return max(sides, default=None)


COLUMNS = (
    "layer",
    "head",
    "call",
    "detector",
    "mean",
    "ci_low",
    "ci_high",
    "chance",
    "control",
    "selectivity",
    "selectivity_low",
    "selectivity_high",
    "n_prompts",
)
WHOLE = ("layer", "head", "call", "n_prompts")
"""The columns that hold whole numbers; `detector` holds text, all others floats."""


def _note(score: HeadScore | None, place: tuple[int, int]) -> str:
    if score is None:
        return f"{HeadId(*place)}: no attention"
    low, high = score.ci95 or (score.mean, score.mean)
    control = "" if score.control is None else f", control {score.control:.3f}"
    return f"{score.head} {score.detector} {score.mean:.3f} [{low:.3f}, {high:.3f}], chance {score.chance:.3f}{control}"


def _arrow_schema() -> Any:
    import pyarrow as pa

    kinds = {name: pa.int32() if name in WHOLE else pa.float64() for name in COLUMNS} | {"detector": pa.string()}
    return pa.schema([*((name, kinds[name]) for name in COLUMNS), ("model", pa.string())])


def _numbers(score: HeadScore) -> dict[str, Any]:
    return {key: value for key, value in encode(score).items() if key not in ("layer", "head", "call", "detector")}


def _row(score: HeadScore) -> dict[str, Any]:
    low, high = score.ci95 or (None, None)
    selectivity = score.selectivity
    least, most = (selectivity.ci95 if selectivity is not None else None) or (None, None)
    return {
        "layer": score.head.layer,
        "head": score.head.head,
        "call": score.head.call,
        "detector": score.detector,
        "mean": score.mean,
        "ci_low": low,
        "ci_high": high,
        "chance": score.chance,
        "control": score.control,
        "selectivity": None if selectivity is None else selectivity.mean,
        "selectivity_low": least,
        "selectivity_high": most,
        "n_prompts": score.n_prompts,
    }
