"""The result of `verify`: a verdict for each head, sets of heads, controls; as objects, JSON, Parquet and frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from headscope.errors import ArgumentError
from headscope.evidence.copying import Copying
from headscope.evidence.head_types import VerdictMeaning, meanings
from headscope.evidence.offsets import BestOffset
from headscope.evidence.scan.result import Timing
from headscope.evidence.verify.evidence import Restored, VerdictRule
from headscope.evidence.verify.verdict import Verdict
from headscope.heads import HeadId, ranking
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import SavedDocument, parquet
from headscope.render.effects import Row, intervals_svg
from headscope.render.figures import intervals_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SCHEMA = "headscope.verify/1"

Relation = Literal["single", "redundant", "complementary", "independent"]
"""How the heads of a set go together.

    single          one head
    redundant       all gone cost more than each gone, added up: they stand in for each other
    complementary   all gone cost less than each gone, added up, and together they copy clearly better than any alone
    independent     neither
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadVerdict:
    """One head's verdict, and what it rests on. What was not measured is None."""

    head: HeadId
    """Which head."""
    verdict: Verdict
    """What it is called."""
    reasons: tuple[str, ...]
    """Why, in words."""
    attention: dict[str, float]
    """Mean attention by role."""
    delta_loss_nats: Estimate | None
    """What removing it does to the second copy's loss."""
    exact: bool
    """Whether that was measured in every held-out prompt. False: the estimate with which it left the race."""
    q_value: float | None
    """Significance of that, Benjamini-Hochberg's."""
    first_copy: Estimate | None
    """What removing it does to the first copy's loss."""
    natural: Estimate | None
    """What removing it does to the loss on natural text."""
    over_random: Estimate | None
    """Its change of the second copy's loss minus that of the first's, less the median of the same for the other heads
    of its layer that have no stripe; None where there are fewer than three."""
    put_back: Restored | None
    """What restoring it alone does, while all other heads with a stripe stay ablated."""
    copying: Copying | None
    """Along the direct path."""
    offset: BestOffset | None
    """The fixed distance it looks back most."""
    behind: tuple[HeadId, ...] = ()
    """Which heads were ablated for `put_back`."""
    interchangeable: tuple[HeadId, ...] = ()
    """Other heads that do all of the work alone, as this one does: any one of them suffices."""

    @property
    def size(self) -> float:
        """How large the effect is, up or down; below 0 where none was measured."""
        return -1.0 if self.delta_loss_nats is None else abs(self.delta_loss_nats.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSet:
    """Heads that were taken out together."""

    heads: tuple[HeadId, ...]
    """Which."""
    relation: Relation
    """How they go together."""
    delta_loss_nats: Estimate
    """What that does to the second copy's loss."""
    first_copy: Estimate
    """What it does to the first copy's."""
    natural: Estimate | None
    """What it does to the loss on natural text, if there was any."""
    sum_of_singles: Estimate
    """Each taken out alone, added up."""
    copying: Copying | None
    """How they copy together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Some heads of the set, and as many random ones matched to them by layer and size of W_V W_O."""

    heads: tuple[HeadId, ...]
    """From the set: all of them, where their layers have as many others."""
    delta_loss_nats: Estimate
    """What taking them out does to the second copy's loss."""
    random_heads: tuple[HeadId, ...]
    """From the same layers, one for each."""
    random_delta_loss_nats: Estimate
    """What taking those out does instead."""
    random_first_copy: Estimate
    """And to the first copy's loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The controls of the verdicts."""

    random_heads: tuple[Draw, ...]
    """Draws of matched random heads; empty where there is no set, or no other head in its layers."""
    norm_matched: bool
    """Whether the sizes of W_V W_O could be read."""
    held_out_prompts: int
    """Prompts on which every exact effect was measured; none chose a head."""
    tests: int
    """Comparisons that the q-values account for."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Verification(SavedDocument):
    """Which heads the second copy depends on, and what each is called."""

    schema: ClassVar[str] = SCHEMA
    model: ModelInfo
    """Which model."""
    heads: tuple[HeadVerdict, ...]
    """Every head that was judged, by layer and head."""
    sets: tuple[HeadSet, ...]
    """The heads whose verdict counts as induction, together; empty if there are none."""
    controls: Controls
    """The controls."""
    clean: dict[str, Estimate]
    """Loss of the untouched model: `second_copy`, `first_copy` and, if there was text, `natural`."""
    rule: VerdictRule
    """The numbers of the rule."""
    probe: dict[str, Any]
    """How the prompts were made."""
    ablation: dict[str, Any]
    """Method, search, and the clean corpus."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""
    head_types: tuple[VerdictMeaning, ...] = field(default_factory=meanings)
    """What each verdict means and how it is shown, in the order of legends."""

    def meaning(self, verdict: Verdict) -> VerdictMeaning:
        """What a verdict means and how it is shown.

        Raises:
            ArgumentError: there is no such verdict.
        """
        for one in self.head_types:
            if one.name == verdict:
                return one
        names = ", ".join(one.name for one in self.head_types)
        raise ArgumentError(f"there is no verdict {verdict!r}; there are {names}.")

    def induction_heads(self) -> list[HeadId]:
        """The heads whose verdict counts as induction, by layer and head."""
        return [one.head for one in self.heads if self.meaning(one.verdict).is_induction]

    def by_effect(self) -> tuple[list[HeadVerdict], list[HeadVerdict]]:
        """The heads with a role or an effect, and the others; each the largest effect first, up or down."""
        ranked = sorted(self.heads, key=lambda one: ranking(one.size, one.head))
        named = [one for one in ranked if self.meaning(one.verdict).has_role]
        return named, [one for one in ranked if one not in named]

    def of(self, verdict: Verdict) -> list[HeadVerdict]:
        """The heads with this verdict, largest effect first.

        Raises:
            ArgumentError: there is no such verdict.
        """
        self.meaning(verdict)
        named = [one for one in self.heads if one.verdict == verdict]
        return sorted(named, key=lambda one: ranking(one.size, one.head))

    def __getitem__(self, head: HeadId | str) -> HeadVerdict:
        wanted = head if isinstance(head, HeadId) else HeadId.parse(head)
        for one in self.heads:
            if one.head == wanted:
                return one
        raise ArgumentError(f"{wanted} was not judged; {len(self.heads)} heads were.")

    def to_frame(self) -> pd.DataFrame:
        """One row per head: layer, head, call, verdict, delta_loss_nats, ci_low, ci_high, q_value, ..., model."""
        import pandas as pd

        frame = pd.DataFrame([_row(one) for one in self.heads])
        return frame.astype(dict.fromkeys(NUMBERS, "float64")).assign(model=self.model.id)

    def refuse_damage(self) -> None:
        """Each verdict is one of the document's head types."""
        known = {one.name for one in self.head_types}
        for i, one in enumerate(self.heads):
            if one.verdict not in known:
                raise ArgumentError(
                    f"the document is damaged (Verification.heads[{i}].verdict holds {one.verdict[:60]!r}, which is "
                    "none of its head types); write it again."
                )

    def to_parquet(self) -> bytes:
        """The frame as a Parquet file, with the rest of the document in its metadata under `headscope`."""
        import pyarrow as pa

        about = {key: value for key, value in self.to_dict().items() if key != "heads"}
        return parquet(pa.Table.from_pandas(self.to_frame(), preserve_index=False), about)

    def __repr__(self) -> str:
        counts = [(len(self.of(one.name)), one) for one in self.head_types]
        found = ", ".join(f"{n} {one.name}" for n, one in counts if n and (one.has_role or one.letter))
        return f"Verification({self.model.id}: {found or 'no head with a role'})"

    def plot(self, *, top: int = 20, width_in: float | None = None) -> Figure:
        """The largest effects as a matplotlib figure; it needs the extra `notebook`.

        Args:
            top: Heads to show, with what removing the set and its random sets does beneath them.
            width_in: Width in inches, like 3.25 for one column of a paper; by default 5.2.

        Raises:
            ArgumentError: matplotlib is not installed.
        """
        return intervals_figure(
            self._rows(top), title=f"Without the head, {self.model.id}", axis=_AXIS, width_in=width_in
        )

    def _repr_html_(self) -> str:
        return intervals_svg(self._rows(20), title=f"Without the head, {self.model.id}", axis=_AXIS)

    def _rows(self, top: int) -> list[Row]:
        known = (one for one in self.heads if one.delta_loss_nats is not None)
        measured = sorted(known, key=lambda one: ranking(one.size, one.head))
        effects = [
            (str(one.head), one.delta_loss_nats, self.meaning(one.verdict).label, self.meaning(one.verdict).colour)
            for one in measured[:top]
        ]
        effects += [(_heads(one.heads), one.delta_loss_nats, "together", None) for one in self.sets]
        effects += [
            (_heads(one.random_heads), one.random_delta_loss_nats, CONTROL, None) for one in self.controls.random_heads
        ]
        return [
            Row(label=label, mean=effect.mean, ci95=effect.ci95, word=word, control=word == CONTROL, colour=colour)
            for label, effect, word, colour in effects
            if effect is not None
        ]

    def listed(self) -> Iterable[HeadId]:
        """See `Document.listed`."""
        return (one.head for one in self.heads)

    def beside(self) -> dict[str, bytes]:
        """See `SavedDocument.beside`."""
        return {"parquet": self.to_parquet()}


NUMBERS = (
    "delta_loss_nats",
    "ci_low",
    "ci_high",
    "q_value",
    "first_copy",
    "natural",
    "put_back",
    "copying",
    "copying_eigenvalue",
)
"""The columns that are numbers even where none was measured."""


CONTROL = "random control"
_AXIS = "change of the second copy's loss, nats per token"


def _heads(heads: tuple[HeadId, ...]) -> str:
    return str(heads[0]) if len(heads) == 1 else f"{len(heads)} heads"


def _row(one: HeadVerdict) -> dict[str, Any]:
    delta = one.delta_loss_nats
    low, high = (delta.ci95 if delta is not None else None) or (None, None)
    return {
        "layer": one.head.layer,
        "head": one.head.head,
        "call": one.head.call,
        "verdict": one.verdict,
        "delta_loss_nats": None if delta is None else delta.mean,
        "ci_low": low,
        "ci_high": high,
        "exact": one.exact,
        "q_value": one.q_value,
        "first_copy": None if one.first_copy is None else one.first_copy.mean,
        "natural": None if one.natural is None else one.natural.mean,
        "put_back": None if one.put_back is None else one.put_back.delta_loss_nats.mean,
        "copying": None if one.copying is None else one.copying.direct.mean,
        "copying_eigenvalue": None if one.copying is None else one.copying.eigenvalue,
        **one.attention,
        "reasons": "; ".join(one.reasons),
    }
