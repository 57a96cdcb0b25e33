"""An atlas as a frozen result: a finding for each head and role, a summary for each head, and their document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from headscope.errors import ArgumentError
from headscope.evidence.atlas.finding import HELD, Effect, Outcome, RoleFinding
from headscope.evidence.atlas.outcome import OutcomeRule
from headscope.evidence.known.lists import KnownHead
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId
from headscope.records.common import ModelInfo, Provenance
from headscope.records.document import SavedDocument

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "headscope.atlas/1"
Status = Literal["unexplained", "held", "idle", "not_tested"]
"""What is known of a head as a whole.

    unexplained   removing it changes the loss on repeated tokens, and it holds no role that says what it does
    held          it holds a role
    idle          it holds none, and no effect of removing it was found, which does not show that there is none
    not_tested    it holds none, but has the score of a role for which other heads were tested; or removing it was not
                  tried, since the atlas is quick or no repeated prompt fits
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleMeaning:
    """A role as documents carry it."""

    name: str
    """Its name."""
    label: str
    """For people."""
    letter: str
    """On maps."""
    colour: str
    """On white paper, #rrggbb."""
    order: int
    """In legends."""
    sentence: str
    """What a head with this role does."""
    look_alike: str
    """With what it can be confused, and what excludes that."""
    least: float
    """Least score."""
    probe: dict[str, Any]
    """How its prompts were made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSummary:
    """One head, over all roles."""

    head: HeadId
    """Which head."""
    status: Status
    """See `Status`."""
    strongest: str | None
    """The role it holds with the best outcome, then the largest effect; None where it holds none."""
    roles: tuple[str, ...]
    """Every role it holds (`primary`, `secondary` or `interferer`), strongest first."""
    correlates: tuple[str, ...]
    """Roles whose score it has and for which no effect of its own was shown."""
    removed: Effect | None
    """Change of the loss on repeated tokens, second copy, under mean ablation; None where it was not tried."""
    unexplained: float | None
    """Share of that effect, under zero ablation, that stays when the head still reads everything but the targets of the
    roles it holds: 0 if these explain all of it. None where it holds no role with targets there, or where zero ablation
    has no effect like the mean ablation's."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Atlas(SavedDocument):
    """Every head's roles."""

    schema: ClassVar[str] = SCHEMA
    model: ModelInfo
    """Which model."""
    fingerprint: str
    """Of its weights."""
    quick: bool
    """Attention and weights only: no intervention, so no head has an outcome but `null`."""
    roles: tuple[RoleMeaning, ...]
    """The roles that were asked."""
    not_asked: dict[str, str]
    """Roles that could not be asked of this model, and why."""
    heads: tuple[HeadSummary, ...]
    """One for each head: unexplained first, by their effect, then those with a role, then the others."""
    findings: tuple[RoleFinding, ...]
    """One for each head and role that was asked, in order."""
    rule: OutcomeRule
    """The numbers of the rule."""
    settings: dict[str, Any]
    """Prompts, seed and whatever else the measurement depends on."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost, over all runs that it took; tokens by the estimate that is made before."""
    known: tuple[KnownHead, ...] = ()
    """What was published of this model's heads, and whether this atlas agrees; empty where no list is of it."""

    def listed(self) -> Iterable[HeadId]:
        """See `Document.listed`."""
        return (one.head for one in self.heads)

    def refuse_damage(self) -> None:
        """Each head has one finding for each role that was asked."""
        wanted = {(one.head, role.name) for one in self.heads for role in self.roles}
        found = Counter((one.head, one.role) for one in self.findings)
        wrong = [pair for pair in wanted | found.keys() if found[pair] != (pair in wanted)]
        if wrong:
            head, role = min(wrong)
            raise ArgumentError(
                f"the document is damaged (Atlas.findings does not hold {head} once for {role}); write it again."
            )

    def of(self, head: HeadId | str) -> list[RoleFinding]:
        """Every finding of one head, in the order of roles.

        Raises:
            ArgumentError: the model has no such head.
        """
        wanted = HeadId.parse(head) if isinstance(head, str) else head
        found = [one for one in self.findings if one.head == wanted]
        if not found:
            raise ArgumentError(f"this atlas has no head {wanted}; it has {len(self.heads)} heads of {self.model.id}.")
        return found

    def with_role(self, role: str, outcomes: Sequence[Outcome] = HELD) -> list[RoleFinding]:
        """Heads with one of these outcomes for a role, best score first.

        Raises:
            ArgumentError: the role was not asked; the message says why.
        """
        if role in self.not_asked:
            raise ArgumentError(f"{role} was not asked of {self.model.id}: {self.not_asked[role]}.")
        if role not in {one.name for one in self.roles}:
            raise ArgumentError(f"this atlas has no role {role!r}; it has {', '.join(one.name for one in self.roles)}.")
        found = [one for one in self.findings if one.role == role and one.outcome in outcomes]
        return sorted(found, key=lambda one: (-one.score.mean, one.head))

    @property
    def unexplained(self) -> list[HeadSummary]:
        """Heads that matter and hold no role, largest effect first."""
        return [one for one in self.heads if one.status == "unexplained"]

    def to_frame(self) -> pd.DataFrame:
        """One row for each head and role: `COLUMNS` and `model`."""
        import pandas as pd

        return pd.DataFrame([_row(one) for one in self.findings], columns=list(COLUMNS)).assign(model=self.model.id)

    def __repr__(self) -> str:
        held = sum(one.status == "held" for one in self.heads)
        kind = "quick: no outcomes" if self.quick else f"{held} with a role, {len(self.unexplained)} unexplained"
        return f"Atlas({self.model.id}: {len(self.heads)} heads, {len(self.roles)} roles; {kind})"


def by_reason(not_asked: Mapping[str, str]) -> dict[str, list[str]]:
    """Roles that could not be asked, by why not: several often lack the same."""
    found: dict[str, list[str]] = {}
    for name, why in not_asked.items():
        found.setdefault(why, []).append(name)
    return found


COLUMNS = (
    *("layer", "head", "call", "role"),
    *("score", "ci_low", "ci_high", "chance", "control", "selectivity", "q_score"),
    *("zero", "mean", "specific", "transfer"),
    *("has_score", "outcome", "variant", "reasons"),
)
"""The frame's columns."""


def _row(one: RoleFinding) -> dict[str, Any]:
    low, high = one.score.ci95 or (None, None)
    return {
        "layer": one.head.layer,
        "head": one.head.head,
        "call": one.head.call,
        "role": one.role,
        "score": one.score.mean,
        "ci_low": low,
        "ci_high": high,
        "chance": one.chance,
        "control": one.control,
        "selectivity": None if one.selectivity is None else one.selectivity.mean,
        "q_score": one.q_score,
        **{
            name: None if name not in one.tests else one.tests[name].estimate.mean
            for name in ("zero", "mean", "specific", "transfer")
        },
        "has_score": one.has_score,
        "outcome": one.outcome,
        "variant": one.variant,
        "reasons": "; ".join(one.reasons),
    }
