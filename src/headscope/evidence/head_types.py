"""Head types: one ordered table of what a head can be called, from which everything else reads what a verdict means.

A row says how a head comes to be called so (`judge`, on the evidence that `verify` collects; the first row that accepts
decides), and how the verdict is shown: letter, colour, order, label and sentence. Terminal, plots, page and documents
read the table; a result carries it (`Verification.head_types`), so that a page or an older program can show a type
that it does not know.

To add a type: write a `HeadType` in a file of its own and put it into `HEAD_TYPES` where it is to be asked. Where the
evidence lacks what the row needs, give it a `measure`: `verify` runs it once, on the prompts of `probe`, and `judge`
finds the numbers in `evidence.measured[name]`.

The rows below need no measure of their own: `verify` scores attention, offsets and removals for every head anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from headscope.evidence.verify.evidence import (
    Evidence,
    VerdictRule,
    attends,
    behind,
    conflict,
    copying,
    effect,
    has,
    has_partial_stripe,
    nats,
    no_stripe,
    removal,
    significant,
)
from headscope.heads import HeadId
from headscope.model.load import Model
from headscope.probes.probe import Probe
from headscope.records.common import Estimate

Reasons = tuple[str, ...]
Measure = Callable[[Model, Probe], Mapping[HeadId, Estimate]]
"""One number for each head that has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictMeaning:
    """What a verdict means and how it is shown, as documents carry it."""

    name: str
    """The verdict."""
    label: str
    """The same for people."""
    letter: str
    """On maps; empty for a head without a role."""
    colour: str
    """On white paper, #rrggbb."""
    colour_dark: str
    """On a dark page."""
    order: int
    """In legends: small first."""
    sentence: str
    """What a head called so does."""
    is_induction: bool
    """Whether it is one of the heads that do induction together."""
    has_role: bool
    """Whether it is listed among the heads with a role, or matters without a known one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadType:
    """A row: what a head can be called, when, and how that is shown."""

    name: str
    """The verdict."""
    probe: Callable[[Model, int], Probe] | None = None
    """Prompts for `measure`, from the model and a seed; None for those of `verify`."""
    measure: Measure | None = None
    """A measurement that this row needs beyond the evidence that every row gets."""
    judge: Callable[[Evidence, VerdictRule], Reasons | None]
    """The reasons why a head is of this type; None where it is not."""
    letter: str
    """See `VerdictMeaning`, also for what follows."""
    colour: str
    """On white paper."""
    colour_dark: str | None = None
    """On a dark page, where it differs."""
    order: int
    """In legends."""
    label: str | None = None
    """By default the name with spaces."""
    sentence: str
    """What a head called so does."""
    is_induction: bool = False
    """Whether it does induction."""
    has_role: bool = True
    """Whether it is listed."""

    @property
    def meaning(self) -> VerdictMeaning:
        """The part that documents carry."""
        return VerdictMeaning(
            name=self.name,
            label=self.label or self.name.replace("_", " "),
            letter=self.letter,
            colour=self.colour,
            colour_dark=self.colour_dark or self.colour,
            order=self.order,
            sentence=self.sentence,
            is_induction=self.is_induction,
            has_role=self.has_role,
        )


def _of_a_stripe(evidence: Evidence, rule: VerdictRule) -> list[str]:
    return [attends(evidence.scores["induction"]), copying(evidence, rule), *effect(evidence, rule)[1]]


def _induction(evidence: Evidence, rule: VerdictRule) -> Reasons | None:
    if not has(evidence, "induction", rule) or effect(evidence, rule)[0] <= 0:
        return None
    return (*_of_a_stripe(evidence, rule), *conflict(evidence, 1, rule))


def _anti_induction(evidence: Evidence, rule: VerdictRule) -> Reasons | None:
    if not has(evidence, "induction", rule):
        return None
    alone, (masked, why) = effect(evidence, rule)[0], behind(evidence, rule)
    if alone > 0 or (alone == 0 and masked >= 0):
        return None
    return (*_of_a_stripe(evidence, rule), *(why if alone == 0 else ()), *conflict(evidence, -1, rule))


def _redundant_induction(evidence: Evidence, rule: VerdictRule) -> Reasons | None:
    backs, why = behind(evidence, rule)
    if backs <= 0 or not has_partial_stripe(evidence.scores, rule):
        return None
    if not has(evidence, "induction", rule) and significant(evidence.removed, rule):
        return None  # what it does alone is not behind others
    reasons = [*_of_a_stripe(evidence, rule), *why, *conflict(evidence, 1, rule)]
    if evidence.interchangeable:
        names = ", ".join(map(str, evidence.interchangeable))
        reasons.append(
            f"interchangeable with {names}: any one of them alone does at least {rule.suffices:.0%} of what all heads "
            "with a stripe do together"
        )
    return tuple(reasons)


def _attends_only(evidence: Evidence, rule: VerdictRule) -> Reasons | None:
    if not has(evidence, "induction", rule):
        return None
    reasons = [*_of_a_stripe(evidence, rule), *behind(evidence, rule)[1]]
    if evidence.removed is not None and evidence.put_back is not None:
        reasons.append("tried were its removal alone and behind all those others, not with some of them")
    return tuple(reasons)


def _by_attention(role: str) -> Callable[[Evidence, VerdictRule], Reasons | None]:
    def judge(evidence: Evidence, rule: VerdictRule) -> Reasons | None:
        return (attends(evidence.scores[role]), *_removal(evidence)) if has(evidence, role, rule) else None

    return judge


def _positional(evidence: Evidence, rule: VerdictRule) -> Reasons | None:
    offset = evidence.offset
    if offset is None or offset.mean < rule.attention:
        return None
    says = f"looks {offset.offset} tokens back whatever they are: {offset.mean:.2f} where nothing repeats"
    return says, *_removal(evidence)


def _matters(evidence: Evidence, rule: VerdictRule) -> Reasons | None:
    if not significant(evidence.removed, rule):
        return None
    first = evidence.first_copy
    also = () if first is None else (f"the first copy's loss by {nats(first)}",)
    return no_stripe(evidence, rule), *_removal(evidence), *also


def _none(evidence: Evidence, rule: VerdictRule) -> Reasons:
    return no_stripe(evidence, rule), *_removal(evidence), *behind(evidence, rule)[1]


def _removal(evidence: Evidence) -> Reasons:
    return () if evidence.removed is None else (removal(evidence.removed),)


HEAD_TYPES: tuple[HeadType, ...] = (
    HeadType(
        name="induction",
        judge=_induction,
        letter="I",
        colour="#0072b2",
        order=0,
        sentence="attends to what followed before, and the loss depends on it",
        is_induction=True,
    ),
    HeadType(
        name="anti_induction",
        judge=_anti_induction,
        letter="X",
        colour="#d55e00",
        order=4,
        sentence="attends like an induction head, and repetition is predicted better without it",
    ),
    HeadType(
        name="redundant_induction",
        judge=_redundant_induction,
        letter="R",
        colour="#56b4e9",
        order=1,
        sentence="does induction where others do not, and others do it where this head does not",
        is_induction=True,
    ),
    HeadType(
        name="attends_only",
        judge=_attends_only,
        letter="A",
        colour="#f0e442",
        order=3,
        sentence="attends like an induction head; no effect on repetition was found",
    ),
    HeadType(
        name="previous_token",
        judge=_by_attention("previous_token"),
        letter="P",
        colour="#009e73",
        order=6,
        sentence="looks at the token before",
    ),
    HeadType(
        name="duplicate_token",
        judge=_by_attention("duplicate_token"),
        letter="D",
        colour="#e69f00",
        order=7,
        sentence="looks at earlier copies of the token",
    ),
    HeadType(
        name="positional",
        judge=_positional,
        letter="O",
        colour="#cc79a7",
        order=5,
        sentence="looks a fixed number of tokens back",
    ),
    HeadType(
        name="matters",
        judge=_matters,
        letter="M",
        colour="#5b6675",
        colour_dark="#9aa6b5",
        order=2,
        label="matters, role unknown",
        sentence="the loss on repetition changes without it, and no role that is known explains why",
    ),
    HeadType(
        name="first_token",
        judge=_by_attention("first_token"),
        letter="F",
        colour="#d3d8df",
        colour_dark="#3a4554",
        order=8,
        sentence="rests on the first token",
        has_role=False,
    ),
    HeadType(
        name="none",
        judge=_none,
        letter="",
        colour="#f1f3f6",
        colour_dark="#1f2732",
        order=9,
        label="no role",
        sentence="no role, and no effect that was found",
        has_role=False,
    ),
)
"""In the order in which they are asked; the last accepts every head."""


def meanings() -> tuple[VerdictMeaning, ...]:
    """What every verdict means, in the order of legends."""
    return tuple(sorted((one.meaning for one in HEAD_TYPES), key=lambda one: one.order))
