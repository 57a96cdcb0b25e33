"""What a comparison holds: the models side by side, what changed between each pair, and the document."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from headscope.errors import ArgumentError
from headscope.evidence.atlas.finding import Outcome
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import SavedDocument

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "headscope.compare/1"

Status = Literal["gained", "lost", "kept", "none", "undecided"]
"""What became of a role: only the second model's head has it, only the first's, both, or neither; `undecided` where one
of them has it and the scores are not shown to differ."""
How = Literal["number", "pattern", "last"]
"""How a head found its counterpart: it has its number, attends as it does, or is the last left of its layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRule:
    """Every number that names a change."""

    difference: float = 0.02
    """Least change of a score: what rounding or another number format does is smaller."""
    false_discovery: float = 0.05
    """Largest q-value, over all heads and roles of a pair of models."""
    agreement: float = 0.5
    """Least agreement of patterns for a head to be taken for one of another number."""
    similarity: float = 0.9
    """A head whose pattern is less similar to its counterpart's is named, whatever its scores for roles."""
    delta_loss_nats: float = 0.01
    """Least difference of loss for the swap test to ask which heads carry it."""
    share: float = 0.1
    """Least share of that difference that a head must carry, both ways."""


RULE = CompareRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRoles:
    """One head's scores in one model."""

    head: HeadId
    """Which."""
    scores: dict[str, float]
    """Attention by role, mean over prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the models."""

    label: str
    """`A`, `B`, ... in the order given."""
    model: ModelInfo
    """Which model."""
    provenance: Provenance
    """How it was measured."""
    probe: dict[str, Any]
    """How its prompts were made."""
    heads: tuple[HeadRoles, ...]
    """Every head."""
    roles: dict[str, tuple[HeadId, ...]]
    """Heads found for each role, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How alike a head and its counterpart attend, on the same prompts."""

    similarity: float
    """Mean over rows of sum sqrt(p_a p_b): 1 where both patterns are equal."""
    agreement: float
    """The same above chance, as a share of what could be: about 0 by chance, near 1 for equal patterns."""
    q_value: float
    """That they attend alike no more than shuffled patterns do."""
    next_best: float | None
    """The largest agreement with another head; None where there is no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChange:
    """One head's score for one role, in both models."""

    role: str
    """Which role."""
    a: float
    """In the first model."""
    b: float
    """In the second."""
    difference: Estimate
    """Second minus first; paired by prompt where both read the same."""
    q_value: float
    """Benjamini-Hochberg's over all heads and roles of this pair of models."""
    changed: bool
    """Whether the difference is significant and as large as the rule asks."""
    status: Status
    """What became of the role; a head gains or loses one only where its score changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadChange:
    """One head of the first model beside its counterpart in the second."""

    head: HeadId
    """In the first model."""
    counterpart: HeadId | None
    """In the second; None where none could be told."""
    how: How | None
    """How that was found."""
    match: Match | None
    """How alike they attend; None where the models did not read the same prompts, or there is no counterpart."""
    roles: tuple[RoleChange, ...]
    """Every role that both were scored for; empty without a counterpart."""

    @property
    def changed(self) -> tuple[RoleChange, ...]:
        """The roles whose score changed, the largest difference first."""
        return tuple(sorted((one for one in self.roles if one.changed), key=lambda one: -abs(one.difference.mean)))


def changed_heads(heads: Iterable[HeadChange]) -> tuple[HeadChange, ...]:
    """Those with a changed score: earliest layer first, in a layer the largest difference first."""
    found = [one for one in heads if one.changed]
    return tuple(
        sorted(found, key=lambda one: (one.head.call, one.head.layer, -abs(one.changed[0].difference.mean), one.head))
    )


def heads_elsewhere(heads: Iterable[HeadChange]) -> tuple[HeadChange, ...]:
    """Those without a changed score whose pattern is less similar than the rule asks, the least similar first."""
    found = [
        (one.match.similarity, one)
        for one in heads
        if one.match is not None and one.match.similarity < RULE.similarity and not one.changed
    ]
    return tuple(one for _, one in sorted(found, key=lambda pair: (pair[0], pair[1].head)))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictChange:
    """One head's verdict in both models."""

    head: HeadId
    """In the first model."""
    counterpart: HeadId
    """In the second."""
    a: str
    """Verdict in the first."""
    b: str
    """Verdict in the second."""
    changed: bool
    """Whether they differ."""
    delta_a: Estimate | None
    """What removing it does to the loss of the first, in nats."""
    delta_b: Estimate | None
    """To that of the second."""
    apart: bool
    """Whether the intervals of the two do not meet; False where one is not known."""
    reasons_a: tuple[str, ...]
    """Why it is called so in the first."""
    reasons_b: tuple[str, ...]
    """And in the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeChange:
    """One head and role of the atlas in both models."""

    head: HeadId
    """In the first model."""
    counterpart: HeadId
    """In the second."""
    role: str
    """Which role, by the atlas's name."""
    a: Outcome | None
    """Outcome in the first model; None where nothing was tried."""
    b: Outcome | None
    """In the second."""
    score_a: Estimate
    """Score in the first."""
    score_b: Estimate
    """In the second."""
    status: Status
    """`gained`, `lost` or `kept`: whether the head holds the role (`primary`, `secondary` or `interferer`)."""
    apart: bool
    """Whether the intervals of the two scores do not meet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeChange:
    """One path of the circuit in both models, by the first model's names."""

    sender: HeadId
    """Who writes."""
    receiver: HeadId
    """Who reads."""
    input: str
    """Through its key or query: `k`, `q`."""
    share_a: float | None
    """Share of the stripe in the first model; None where the path was not named there."""
    share_b: float | None
    """In the second."""
    status: Status
    """`gained`, `lost` or `kept`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSwap:
    """What swapping some heads' z does, as shares of the difference in loss."""

    heads: tuple[HeadId, ...]
    """Which."""
    restores: Estimate
    """The first model's z in the second undoes this share."""
    transfers: Estimate
    """The second model's z in the first brings this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSwap:
    """One head swapped."""

    head: HeadId
    """Which."""
    restores: Estimate
    """As of `SetSwap`."""
    transfers: Estimate
    """As of `SetSwap`."""
    q_value: float
    """The larger of both directions'."""
    carries: bool
    """Whether both shares are as large as the rule asks, significantly."""
    adds: Estimate | None
    """What it restores beside the carriers of earlier layers; None where there is none."""
    source: bool
    """Whether it carries the difference by itself, and does not only pass on what an earlier carrier changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapTest:
    """Which heads carry the difference in loss."""

    loss_a: Estimate
    """Loss on the second copy, nats, of the first model."""
    loss_b: Estimate
    """Of the second."""
    difference: Estimate
    """Second minus first, paired."""
    asked: bool
    """Whether they differ enough to ask."""
    reason: str
    """Why, or why not."""
    heads: tuple[HeadSwap, ...]
    """Every head, in order."""
    everything: SetSwap | None
    """All heads swapped: what attention carries in all."""
    sources: SetSwap | None
    """All sources together; None where no head is one."""
    random: tuple[SetSwap, ...]
    """As many other heads, drawn at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptToken:
    """One token of a prompt."""

    id: int
    """Its number."""
    text: str | None
    """As the first model's tokenizer shows it; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPatterns:
    """What one head attends to in both models: the lower triangle row by row, a byte each, 255 for 1, in base64."""

    head: HeadId
    """In the first model."""
    counterpart: HeadId
    """In the second."""
    a: str
    """Pattern in the first."""
    b: str
    """In the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairPatterns:
    """A few heads' patterns in both models, on one prompt."""

    tokens: tuple[PromptToken, ...]
    """The prompt."""
    heads: tuple[HeadPatterns, ...]
    """Changed heads first, earliest layer first; then those whose patterns differ most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairChange:
    """What differs between two of the models."""

    a: str
    """Label of the first."""
    b: str
    """Label of the second."""
    paired: bool
    """Whether both read the same prompts."""
    why: str
    """Why, or why not."""
    differ: tuple[str, ...]
    """What is known to differ beside the weights, like `dtype float32, bfloat16`."""
    similarity: float | None
    """Mean similarity of matched heads; None where the models did not read the same prompts."""
    heads: tuple[HeadChange, ...]
    """Every head of the first model."""
    unmatched: tuple[HeadId, ...]
    """Heads of the second model that are nobody's counterpart."""
    finding: str
    """In one sentence."""
    bound: float | None = None
    """No score of any head changed by more, at 95% for all together (Student's t, Bonferroni), at most 1; None where
    the prompts are not paired. Of a change that shows in few prompts it says little: what none of n prompts shows may
    still be in 3 / n of all."""
    verdicts: tuple[VerdictChange, ...] | None = None
    """Heads whose verdict differs, or with a role in either model; None where nothing was verified."""
    edges: tuple[EdgeChange, ...] | None = None
    """Paths of either circuit; None where none was traced."""
    swap: SwapTest | None = None
    """Which heads carry the difference in loss; None where it was not asked for."""
    outcomes: tuple[OutcomeChange, ...] | None = None
    """Heads that hold a role in either model's atlas, with the role; None where no atlas was made."""
    patterns: PairPatterns | None = None
    """Of a few heads that look elsewhere; None where there is none, or the models did not read the same prompts."""

    @property
    def changed(self) -> tuple[HeadChange, ...]:
        """Heads with a changed score: earliest layer first, in a layer the largest difference first."""
        return changed_heads(self.heads)

    @property
    def moved(self) -> tuple[HeadChange, ...]:
        """Heads whose counterpart has another number."""
        return tuple(one for one in self.heads if one.counterpart not in (None, one.head))

    def __getitem__(self, head: HeadId | str) -> HeadChange:
        wanted = head if isinstance(head, HeadId) else HeadId.parse(head)
        for one in self.heads:
            if one.head == wanted:
                return one
        raise ArgumentError(f"{wanted} is not in the first model, which has {len(self.heads)} heads.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """How alike two of the models attend."""

    a: str
    """Label of the one."""
    b: str
    """Label of the other."""
    similarity: float
    """Mean similarity of matched heads, 1 for equal patterns; by scores, 1 minus their mean difference."""
    by: Literal["pattern", "scores"] = "pattern"
    """What was compared: `scores` where no patterns were kept."""


COLUMNS = (
    *("a", "b", "layer", "head", "call", "counterpart", "role", "score_a", "score_b"),
    *("difference", "ci_low", "ci_high", "q_value", "changed", "status", "model"),
)
"""Of `Comparison.to_frame`."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Comparison(SavedDocument):
    """What changed between models."""

    schema: ClassVar[str] = SCHEMA
    sides: tuple[Side, ...]
    """The models."""
    pairs: tuple[PairChange, ...]
    """The first model beside each other one."""
    nearest: tuple[Likeness, ...]
    """All pairs that read the same prompts, most alike first."""
    rule: CompareRule
    """The numbers that name a change."""
    timing: Timing
    """What it cost, all models together."""

    @property
    def model(self) -> ModelInfo:
        """The first model, with which the others are compared."""
        return self.sides[0].model

    @property
    def changed(self) -> tuple[HeadChange, ...]:
        """Changed heads of the first pair: earliest layer first, in a layer the largest difference first."""
        return self.pairs[0].changed

    @property
    def finding(self) -> str:
        """The first pair's finding."""
        return self.pairs[0].finding

    def to_frame(self) -> pd.DataFrame:
        """One row per pair of models, head and role: `COLUMNS`; `model` is the first model's id."""
        import pandas as pd

        rows = [
            (
                *(pair.a, pair.b, one.head.layer, one.head.head, one.head.call),
                *(str(one.counterpart), role.role, role.a, role.b, role.difference.mean),
                *(role.difference.ci95 or (None, None)),
                *(role.q_value, role.changed, role.status, self.model.id),
            )
            for pair in self.pairs
            for one in pair.heads
            for role in one.roles
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"ci_low": "float64", "ci_high": "float64"})

    def beside(self) -> dict[str, bytes]:
        """See `SavedDocument.beside`."""
        return {"parquet": self.to_frame().to_parquet(index=False)}

    def refuse_damage(self) -> None:
        """Two models at least, each named by a label of its own."""
        labels = {one.label for one in self.sides}
        if not self.pairs or any(not {one.a, one.b} <= labels for one in (*self.pairs, *self.nearest)):
            raise ArgumentError(
                "the document is damaged (Comparison.pairs is empty, or names a model that it does not hold); write it "
                "again."
            )
        for shown in (pair.patterns for pair in self.pairs if pair.patterns is not None):
            places = len(shown.tokens) * (len(shown.tokens) + 1) // 2
            if any(_n_bytes(text) != places for one in shown.heads for text in (one.a, one.b)):
                raise ArgumentError(
                    f"the document is damaged (a pattern of {len(shown.tokens)} tokens is not the base64 of {places} "
                    "bytes); write it again."
                )

    def __repr__(self) -> str:
        return f"Comparison({', '.join(one.model.id for one in self.sides)}: {self.finding})"


def _n_bytes(text: str) -> int | None:
    """How many bytes a text is in base64; None where it is none."""
    try:
        return len(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return None
