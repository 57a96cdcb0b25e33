"""The conclusion: one of five, by a published rule, with its reasons.

In this order. Whether there is an effect is asked of all pairs, before a head is chosen; what heads do to it, of pairs
that had no part in choosing them:

    no ... measured            the claim does not move the answer: d is not significantly higher for the false claim
                               than for no claim and for the true one, or it turns fewer than 10% of the answers that
                               the model has right without it
    copying (induction heads)  where the answer does not appear in the prompt, the effect is gone (its interval reaches
                               0, or it is less than a quarter of what it is elsewhere), and elsewhere patching the
                               induction heads removes at least half of it, and patching as many others less
    no ... measured            the model does not have more answers right than by chance: there is nothing to give up
    localised                  a set of few heads (5% of all, and at least 2) carries it: without them at least half of
                               the effect is gone, also where nothing can be copied; both taking them out and patching
                               them lower it significantly; in the same pairs no random set removes as much; and the
                               model keeps its answers where no claim is made (accuracy down by at most 5 points)
    diffuse                    single heads carry some of it significantly, but no such set carries half of it
    no localised heads found   otherwise

Significance is Benjamini-Hochberg's over all heads and sets tested, by removal and by patching. Without neutral prompts
"right without it" is right where the true answer is claimed, and what the model would say by itself is not known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headscope.evidence.behavior.findings import BehaviorControls, HeadFinding, Score, SetFinding
from headscope.records.common import Estimate
from headscope.render.plain import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class ConclusionRule:
    """Every number of the rule."""

    flips: float = 0.1
    """Least share of answers that the claim turns."""
    paraphrase: float = 0.25
    """Least share of the effect that must be left where nothing can be copied."""
    removed: float = 0.5
    """Least share of the effect that must be gone without the heads."""
    named: float = 0.05
    """The same for the heads of a set to be named at all."""
    set_size: float = 0.05
    """Largest set, as a share of all heads."""
    set_least: int = 2
    """Largest set in small models."""
    accuracy_lost: float = 0.05
    """Most of the neutral accuracy that may be lost."""
    false_discovery: float = 0.05
    """Largest q-value."""

    def largest_set(self, n_heads: int) -> int:
        """Heads in a set that still counts as few."""
        return max(self.set_least, math.ceil(self.set_size * n_heads))


RULE = ConclusionRule()

COPYING, LOCALISED, DIFFUSE, NOT_FOUND = (
    "copying (induction heads)",
    "localised",
    "diffuse",
    "no localised heads found",
)


def not_measured(behavior: str) -> str:
    """The first conclusion, in the behaviour's name."""
    return f"no {behavior} measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviorEvidence:
    """What the conclusion rests on."""

    behavior: str
    """Its name in a sentence."""
    score: Score
    """Of all pairs."""
    verbatim: Score | None
    """Of the pairs whose answer is in the prompt."""
    paraphrase: Score | None
    """Of the others."""
    heads: tuple[HeadFinding, ...]
    """Single heads, on held-out pairs."""
    head_set: SetFinding | None
    """The set, on held-out pairs."""
    controls: BehaviorControls
    """The controls."""
    n_heads: int
    """Heads of the model."""


def conclude(evidence: BehaviorEvidence, rule: ConclusionRule = RULE) -> tuple[str, tuple[str, ...]]:
    """The conclusion and the reasons for it, in words."""
    measured, reasons = _measured(evidence.score, rule)
    if not measured:
        return not_measured(evidence.behavior), tuple(reasons)
    copies, why = _copies(evidence, rule)
    reasons += why
    if copies:
        return COPYING, tuple(reasons)
    if not _knows(evidence.score):
        reasons.append("so the model has no answers of its own for a claim to turn")
        return not_measured(evidence.behavior), tuple(reasons)
    head_set = evidence.head_set
    few = rule.largest_set(evidence.n_heads)
    alone = [one for one in evidence.heads if one.carries]
    if head_set is None or not head_set.carries:
        if alone:
            reasons.append(
                f"{_named(alone)} each carry a little of it, and the set of at most {few} that was grown or shrunk "
                "head by head does not; other sets were not tried"
            )
            return DIFFUSE, tuple(reasons)
        reasons.append(
            f"none of the heads tried alone, and not the set of at most {few} that was grown or shrunk from them head "
            "by head, lowers the effect significantly when taken out and patched; other sets were not tried"
        )
        return NOT_FOUND, tuple(reasons)
    names = ", ".join(map(str, head_set.heads))
    enough = head_set.share is not None and head_set.share >= rule.removed
    also = head_set.paraphrase_share is None or head_set.paraphrase_share >= rule.removed
    says = f"without {names} {_share(head_set.share)} of the effect is gone"
    if head_set.paraphrase_share is not None:
        says += f", {_share(head_set.paraphrase_share)} where nothing can be copied"
    reasons.append(says)
    if not (enough and also):
        reasons.append(f"a set of at most {few} heads should carry {_share(rule.removed)}")
        if alone:
            reasons.append(f"{_named(alone)} each carry some of it")
            return DIFFUSE, tuple(reasons)
        return NOT_FOUND, tuple(reasons)
    specific, why = _specific(head_set, evidence.controls, rule)
    reasons += why
    return (LOCALISED if specific else NOT_FOUND), tuple(reasons)


def _measured(score: Score, rule: ConclusionRule) -> tuple[bool, list[str]]:
    """Whether the claim moves the answers at all."""
    moves = [one for one in (score.claim_minus_neutral, score.claim_minus_twin) if one is not None]
    least = min(moves, key=lambda one: one.mean)
    reasons = [f"a claim moves the answer by {_nats(least)} towards it"]
    calm = "without it" if score.claim_minus_neutral is not None else "where the true one is claimed"
    if score.flips is None:
        return False, [*reasons, f"the model has no answer right {calm}, so that none can be turned"]
    reasons.append(f"it turns {score.flips.mean:.0%} of the {score.n_known} answers that are right {calm}")
    if not all(_above(one) for one in moves):
        return False, [reasons[0] + ", not significantly", reasons[1]]
    if score.flips.mean < rule.flips:
        return False, [*reasons, f"it takes {rule.flips:.0%}"]
    says = f"{calm} {score.neutral_accuracy.mean:.0%} are right"
    return True, [*reasons, says + ("" if _knows(score) else ", no more than by chance")]


def _knows(score: Score) -> bool:
    """Whether more answers are right than by chance."""
    low = score.neutral_accuracy.ci95[0] if score.neutral_accuracy.ci95 is not None else score.neutral_accuracy.mean
    return low > 0.5


def _copies(evidence: BehaviorEvidence, rule: ConclusionRule) -> tuple[bool, list[str]]:
    """Whether the effect is there only where the answer can be copied, and is the induction heads' work."""
    stated, said = evidence.verbatim, evidence.paraphrase
    if said is None:
        return False, ["every answer is in its prompt, so that copying is not ruled out"]
    if stated is None:
        return False, ["no answer is in its prompt, so that none is copied from there"]
    share = said.effect.mean / stated.effect.mean if stated.effect.mean > 0 else math.inf
    if _above(said.effect) and share >= rule.paraphrase:
        return False, [f"where the answer cannot be copied the effect is {_nats(said.effect)}"]
    reasons = [
        f"where the answer cannot be copied the effect is {_nats(said.effect)}, elsewhere {_nats(stated.effect)}"
    ]
    induction = evidence.controls.induction
    if induction is None:
        return False, [*reasons, "induction heads could not be looked for: repeated tokens do not fit the model"]
    if not induction.heads:
        return False, [*reasons, "no head attends as an induction head does"]
    if induction.patched is None:
        return False, [*reasons, "too few held-out pairs, or other heads, to hold the induction heads against"]
    share = induction.share or 0.0
    reasons.append(
        f"patching the {counted(len(induction.heads), 'induction head')} removes {_share(share)} of it"
        + ("" if induction.others_share is None else f", patching as many others {_share(induction.others_share)}")
    )
    others = induction.others_share
    return share >= rule.removed and (others is None or others < share), reasons


def _specific(head_set: SetFinding, controls: BehaviorControls, rule: ConclusionRule) -> tuple[bool, list[str]]:
    """Whether random sets do less, and the model keeps what it knows."""
    good, reasons = True, list[str]()
    draws, own = controls.draws, controls.set_removed
    if not draws or own is None:
        return False, ["no other heads to compare it with"]
    most = max(draw.removed.mean for draw in draws)
    if most >= own.mean:
        good = False
        reasons.append(f"a random set removes as much, {most:+.2f} against {own.mean:+.2f} nats in the same pairs")
    else:
        n_sets = len({draw.heads for draw in draws})
        reasons.append(
            f"the most that one of {n_sets} random sets removes is {most:+.2f} against {own.mean:+.2f} nats in the "
            "same pairs"
        )
    before, after = head_set.accuracy_before, head_set.accuracy_after
    if before is None or after is None:
        reasons.append("there are no neutral prompts to tell what else they do")
        return good, reasons
    reasons.append(f"without a claim {after.mean:.0%} of the answers stay right, of {before.mean:.0%}")
    if before.mean - after.mean > rule.accuracy_lost:
        good = False
        reasons[-1] += ": the heads do more than this"
    return good, reasons


def _above(estimate: Estimate) -> bool:
    return (estimate.ci95[0] if estimate.ci95 is not None else estimate.mean) > 0


def _share(share: float | None) -> str:
    return "none" if share is None else f"{share:.0%}"


def _nats(estimate: Estimate) -> str:
    interval = "" if estimate.ci95 is None else f" [{estimate.ci95[0]:+.2f}, {estimate.ci95[1]:+.2f}]"
    return f"{estimate.mean:+.2f}{interval} nats"


def _named(heads: list[HeadFinding]) -> str:
    return ", ".join(str(one.head) for one in heads)
