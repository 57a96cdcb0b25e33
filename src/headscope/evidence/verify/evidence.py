"""What is known of one head, the numbers of the rule, and the questions that verdicts ask, each with its reasons.

    stripe      attention on the tokens after earlier copies >= 0.4, of which at least half is lost on the control;
                a partial stripe: the same from 0.1 on
    effect      +1 where removing the head raises the second copy's loss by >= 0.01 nats, significantly (q <= 0.05), by
                more than it raises the first copy's, and by more than removing another head of its layer does;
                -1 where it lowers it, by the same conditions mirrored; 0 otherwise
    behind      the sign of restoring the head alone while all heads with a stripe stay ablated: +1 where that lowers
                the loss, by the same size and significance
    copies      direct copying >= 0.05, its interval above 0;   suppresses: <= -0.05, its interval below 0

Significance is Benjamini-Hochberg's over every removal and every restoring that was tried, on prompts that had no part
in choosing the heads. Direct copying supports a verdict and decides none: what a head reads may be an embedding that
earlier layers rewrote, and then its direct path says anything. Where it contradicts the effect, the reasons say so.
It counts in one place: a head that copies is not dismissed because its neighbours matter as much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from headscope.evidence.copying import Copying
from headscope.evidence.offsets import BestOffset
from headscope.evidence.scan.result import THRESHOLD, HeadScore
from headscope.heads import HeadId
from headscope.records.common import Estimate

CONTENT = ("induction", "duplicate_token")
"""Attention roles about what tokens are: most of the score must be lost on the control."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRule:
    """Every number of the rule."""

    attention: float = THRESHOLD
    """Least attention for a role."""
    lost_on_control: float = 0.5
    """Least share of it that must be gone on the control, for roles about content."""
    copying: float = 0.05
    """Least size of the direct copying score."""
    delta_loss_nats: float = 0.01
    """Least change of the second copy's loss, up or down."""
    false_discovery: float = 0.05
    """Largest q-value."""
    partial_stripe: float = 0.1
    """Least attention on the stripe for a head that may stand in for others, though it has no stripe."""
    suffices: float = 0.9
    """Least share of what all heads with a stripe restore, for a head that does it alone."""


RULE = VerdictRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A change of the second copy's loss and its significance."""

    delta_loss_nats: Estimate
    """Paired by prompt."""
    q_value: float
    """Benjamini-Hochberg's, over everything that was tested with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one head; None where it was not measured."""

    head: HeadId
    """Which head."""
    scores: dict[str, HeadScore]
    """Attention by role."""
    offset: BestOffset | None
    """The fixed distance it looks back most, where nothing repeats."""
    copying: Copying | None
    """Along the direct path; None where the weights cannot be assigned to heads."""
    removed: Restored | None
    """It alone ablated, in held-out prompts."""
    first_copy: Estimate | None
    """What that does to the first copy's loss."""
    over_first_copy: Estimate | None
    """Change of the second copy's loss minus that of the first's."""
    over_random: Estimate | None
    """That difference, minus the median of the same difference for every other head of its layer that has no stripe;
    None where there are fewer than three."""
    put_back: Restored | None
    """Loss with the heads of `behind` ablated, minus the loss with this head alone restored; None where it was not
    tried."""
    behind: tuple[HeadId, ...] = ()
    """Which other heads were ablated then."""
    interchangeable: tuple[HeadId, ...] = ()
    """Other heads that do all of the work alone, as this one does."""
    measured: Mapping[str, Estimate] = field(default_factory=dict)
    """What head types with a measure of their own found for it, by the type's name."""


Sign = Literal[-1, 0, 1]


def has(evidence: Evidence, role: str, rule: VerdictRule) -> bool:
    """Whether it attends as this role does."""
    return _reaches(evidence.scores.get(role), rule.attention, rule)


def has_stripe(scores: Mapping[str, HeadScore], rule: VerdictRule = RULE) -> bool:
    """Whether a head attends as an induction head does."""
    return _reaches(scores.get("induction"), rule.attention, rule)


def has_partial_stripe(scores: Mapping[str, HeadScore], rule: VerdictRule = RULE) -> bool:
    """Whether a head attends in part as an induction head does, with a stripe or less."""
    return _reaches(scores.get("induction"), rule.partial_stripe, rule)


def _reaches(score: HeadScore | None, least: float, rule: VerdictRule) -> bool:
    if score is None:
        return False
    return score.reaches(least, content=score.detector in CONTENT, lost_on_control=rule.lost_on_control)


def direct(copying: Copying | None, rule: VerdictRule = RULE) -> Literal["copies", "suppresses", "neither", "unknown"]:
    """What a head does along the direct path to the token that it attends to."""
    if copying is None:
        return "unknown"
    low, high = copying.direct.ci95 or (copying.direct.mean, copying.direct.mean)
    if copying.direct.mean >= rule.copying and low > 0:
        return "copies"
    return "suppresses" if copying.direct.mean <= -rule.copying and high < 0 else "neither"


def significant(change: Restored | None, rule: VerdictRule = RULE) -> Sign:
    """The sign of a change that is large enough and significant; 0 otherwise."""
    if change is None or change.q_value > rule.false_discovery:
        return 0
    mean = change.delta_loss_nats.mean
    return 1 if mean >= rule.delta_loss_nats else -1 if mean <= -rule.delta_loss_nats else 0


def effect(evidence: Evidence, rule: VerdictRule) -> tuple[Sign, list[str]]:
    """The sign of what removing the head does to the second copy and to it alone; with the reasons."""
    change = evidence.removed
    if change is None:
        return 0, ["its removal was not tried"]
    reasons = [removal(change)]
    sign = significant(change, rule)
    fails = [] if sign else [f"less than {rule.delta_loss_nats} nats, or not significant"]
    word = "lower" if sign < 0 else "more"
    first, others = evidence.over_first_copy, evidence.over_random
    if first is None:
        reasons.append("the first copy's change is not known")
    elif _beyond(first, sign or 1):
        reasons.append(f"{word} than the first copy's change, by {nats(first)}")
    else:
        fails.append(f"not {word} than the first copy's change (difference {nats(first)})")
    agrees = direct(evidence.copying, rule) == ("suppresses" if sign < 0 else "copies")
    if others is None:
        reasons.append("too few other heads without a stripe in its layer to compare it with")
    elif _beyond(others, sign or 1):
        reasons.append(f"{word} than removing another head of its layer does, by {nats(others)}")
    else:
        says = f"not {word} than removing another head of its layer does (difference {nats(others)})"
        if sign and agrees:
            reasons.append(f"{says}, but its direct path agrees with the effect")
        else:
            fails.append(says)
    return (0 if fails else sign), reasons + fails


def _beyond(estimate: Estimate, sign: Sign) -> bool:
    """Whether it has this sign: its whole interval, where there is one."""
    low, high = estimate.ci95 or (estimate.mean, estimate.mean)
    return low > 0 if sign > 0 else high < 0


def behind(evidence: Evidence, rule: VerdictRule) -> tuple[Sign, list[str]]:
    """The sign of what the head does where the other heads with a stripe do nothing; with the reason."""
    change = evidence.put_back
    if change is None:
        return 0, []
    sign = significant(change, rule)
    says = {1: "does its work behind others", -1: "works against it behind others", 0: "adds nothing behind others"}
    n = len(evidence.behind)
    others = "the other head" if n == 1 else f"the {n} other heads"
    return sign, [
        f"{says[sign]}: while {others} with a stripe or a part of one {'stays' if n == 1 else 'stay'} ablated, "
        f"restoring it lowers the second copy's loss by {nats(change.delta_loss_nats)}, {q_text(change.q_value)}"
    ]


# ---- in words

_TARGETS = {
    "induction": "the tokens after earlier copies",
    "previous_token": "the token before",
    "duplicate_token": "earlier copies of the token",
    "first_token": "the first token",
}


def attends(score: HeadScore) -> str:
    """Where it looks, by how much, and by chance."""
    interval = "" if score.ci95 is None else f" [{score.ci95[0]:.2f}, {score.ci95[1]:.2f}]"
    control = "" if score.control is None else f", on the control {score.control:.2f}"
    return f"attends to {_TARGETS[score.detector]}: {score.mean:.2f}{interval}, by chance {score.chance:.2f}{control}"


def no_stripe(evidence: Evidence, rule: VerdictRule) -> str:
    """Why it has no stripe."""
    score = evidence.scores.get("induction")
    if score is None:
        return "no role was scored"
    if score.mean >= rule.attention:
        return f"{attends(score)}, so not for what the tokens are"
    best = max(evidence.scores.values(), key=lambda one: one.mean)
    return (
        f"attends to the tokens after earlier copies only {score.mean:.2f} (it takes {rule.attention}); "
        f"most to {best.detector.replace('_', ' ')}, {best.mean:.2f}"
    )


def copying(evidence: Evidence, rule: VerdictRule) -> str:
    """What its direct path does."""
    found = evidence.copying
    match direct(found, rule):
        case "unknown":
            return "copying is not known: its weights cannot be assigned to heads"
        case "copies":
            verb = "raises the token it attends to"
        case "suppresses":
            verb = "lowers the token it attends to"
        case "neither":
            verb = "neither raises nor lowers the token it attends to by much"
    assert found is not None
    eigenvalue = "none" if found.eigenvalue is None else f"{found.eigenvalue:+.2f}"
    return f"{verb}: direct copying {found.direct.mean:+.2f}, eigenvalue score {eigenvalue}"


def conflict(evidence: Evidence, sign: Sign, rule: VerdictRule) -> list[str]:
    """That the direct path says the opposite of the effect, where it does."""
    says = direct(evidence.copying, rule)
    if sign > 0 and says == "suppresses":
        return ["its direct path says the opposite; the effect decides, as other layers may rewrite what it reads"]
    if sign < 0 and says == "copies":
        return ["its direct path says the opposite; the effect decides, as other layers may rewrite what it reads"]
    return []


def removal(change: Restored) -> str:
    """What removing a head does."""
    return f"removing it changes the second copy's loss by {nats(change.delta_loss_nats)}, {q_text(change.q_value)}"


def q_text(q: float) -> str:
    """A q-value in words; rounding ends at 1e-15."""
    return f"q {q:.1g}" if q >= 1e-15 else "q < 1e-15"


def nats(estimate: Estimate) -> str:
    """A change of loss with its interval."""
    interval = "" if estimate.ci95 is None else f" [{estimate.ci95[0]:+.3f}, {estimate.ci95[1]:+.3f}]"
    return f"{estimate.mean:+.3f}{interval} nats"
