"""The verdict: what a head is called, by a published rule, with its reasons.

Three questions are asked of a head: what does it attend to, what does it copy, what breaks without it. In this order:

    stripe           attention on the tokens after earlier copies >= 0.4, of which at least half is gone on the control
    copies           direct copying >= 0.05, its interval above 0;   suppresses: <= -0.05, its interval below 0
    matters          removing it raises the second copy's loss by >= 0.01 nats, significantly (q <= 0.05), by more than
                     the first copy's, and by more than matched random heads
    matters behind   the same number and significance for putting it back when all stripe heads are gone
    others

    stripe, suppresses, does not matter                  -> anti_induction
    stripe, does not suppress, matters                   -> induction
    stripe, does not suppress, matters behind others     -> redundant_induction
    stripe, none of these                                -> attends_only
    no stripe: previous token >= 0.4                     -> previous_token
               earlier copies >= 0.4, half gone          -> duplicate_token
               some fixed offset >= 2 back >= 0.4        -> positional
               first token >= 0.4                        -> first_token
               otherwise                                 -> none

`matters` and `copies` say nothing of heads without a stripe: a head may matter in many ways that are not induction.
Significance is Benjamini-Hochberg's over every removal and every putting back that was tried, on prompts that had no
part in choosing the heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from headscope.evidence.copying import Copying
from headscope.evidence.offsets import BestOffset
from headscope.evidence.scan.result import THRESHOLD, HeadScore
from headscope.heads import HeadId
from headscope.records.common import Estimate

Verdict = Literal[
    "induction",
    "redundant_induction",
    "attends_only",
    "anti_induction",
    "positional",
    "previous_token",
    "duplicate_token",
    "first_token",
    "none",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Every number of the rule."""

    attention: float = THRESHOLD
    """Least attention for a role."""
    lost_on_control: float = 0.5
    """Least share of it that must be gone on the control, for roles about content."""
    copying: float = 0.05
    """Least size of the direct copying score."""
    delta_loss_nats: float = 0.01
    """Least change of the second copy's loss."""
    false_discovery: float = 0.05
    """Largest q-value."""


RULE = Rule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
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
    """Along the direct path; None where the weights cannot be told apart by head."""
    removed: Change | None
    """It alone taken out, in held-out prompts."""
    first_copy: Estimate | None
    """What that does to the first copy's loss."""
    over_first_copy: Estimate | None
    """Change of the second copy's loss minus that of the first's."""
    over_random: Estimate | None
    """Change of the second copy's loss minus the mean of matched random heads'; None where no head is left to match."""
    put_back: Change | None
    """Loss without all stripe heads minus loss without all but it; None where it is the only one, or none."""


def judge(evidence: Evidence, rule: Rule = RULE) -> tuple[Verdict, tuple[str, ...]]:
    """A head's verdict and the reasons for it, in words."""
    if _has(evidence, "induction", rule):
        return _striped(evidence, rule)
    reasons = [_no_stripe(evidence, rule)]
    for role in ("previous_token", "duplicate_token"):
        if _has(evidence, role, rule):
            return role, (_attends(evidence.scores[role]), *_effect(evidence, rule))
    offset = evidence.offset
    if offset is not None and offset.mean >= rule.attention:
        reason = f"looks {offset.offset} tokens back whatever they are: {offset.mean:.2f} where nothing repeats"
        return "positional", (reason, *_effect(evidence, rule))
    if _has(evidence, "first_token", rule):
        return "first_token", (_attends(evidence.scores["first_token"]), *_effect(evidence, rule))
    return "none", (*reasons, *_effect(evidence, rule))


def _striped(evidence: Evidence, rule: Rule) -> tuple[Verdict, tuple[str, ...]]:
    copies = _copies(evidence.copying, rule)
    matters, effect = _matters(evidence, rule)
    reasons = [_attends(evidence.scores["induction"]), _copying(evidence.copying, rule), *effect]
    if copies == "suppresses":
        if matters:
            reasons.append("the evidence conflicts: it lowers what it attends to, yet the second copy needs it")
        return ("attends_only" if matters else "anti_induction"), tuple(reasons)
    if matters:
        return "induction", tuple(reasons)
    back = evidence.put_back
    if back is not None:
        enough = _significant(back, rule)
        says = "does its work behind others" if enough else "adds nothing behind others"
        reasons.append(
            f"{says}: put back where all stripe heads are gone it lowers the second copy's loss by "
            f"{_nats(back.delta_loss_nats)}, {q_text(back.q_value)}"
        )
        if enough:
            return "redundant_induction", tuple(reasons)
    return "attends_only", tuple(reasons)


def has_stripe(scores: dict[str, HeadScore], rule: Rule = RULE) -> bool:
    """Whether a head attends as an induction head does."""
    score = scores.get("induction")
    return score is not None and score.reaches(rule.attention, content=True, lost_on_control=rule.lost_on_control)


def _copies(copying: Copying | None, rule: Rule = RULE) -> Literal["copies", "suppresses", "neither", "unknown"]:
    if copying is None:
        return "unknown"
    low, high = copying.direct.ci95 or (copying.direct.mean, copying.direct.mean)
    if copying.direct.mean >= rule.copying and low > 0:
        return "copies"
    return "suppresses" if copying.direct.mean <= -rule.copying and high < 0 else "neither"


def suppresses(copying: Copying | None, rule: Rule = RULE) -> bool:
    """Whether a head lowers the token that it attends to."""
    return _copies(copying, rule) == "suppresses"


def _matters(evidence: Evidence, rule: Rule) -> tuple[bool, list[str]]:
    """Whether removing the head hurts the second copy, and only that; with the reasons."""
    change = evidence.removed
    if change is None:
        return False, ["its removal was not tried"]
    reasons = [
        f"removing it changes the second copy's loss by {_nats(change.delta_loss_nats)}, {q_text(change.q_value)}"
    ]
    fails = []
    if not _significant(change, rule):
        fails.append(f"less than {rule.delta_loss_nats} nats, or not significant")
    for what, over in (("the first copy's", evidence.over_first_copy), ("matched random heads'", evidence.over_random)):
        if over is None:
            reasons.append(f"{what} change is not known")
        elif not _above(over):
            fails.append(f"not more than {what} change (difference {_nats(over)})")
        else:
            reasons.append(f"more than {what} change, by {_nats(over)}")
    return not fails, reasons + fails


def _effect(evidence: Evidence, rule: Rule) -> list[str]:
    """The removal of a head without a stripe, as information."""
    return [] if evidence.removed is None else _matters(evidence, rule)[1][:1]


def _significant(change: Change, rule: Rule) -> bool:
    return change.delta_loss_nats.mean >= rule.delta_loss_nats and change.q_value <= rule.false_discovery


def _above(estimate: Estimate) -> bool:
    """Whether it is above zero: its whole interval, where there is one."""
    return (estimate.ci95[0] if estimate.ci95 is not None else estimate.mean) > 0


def _has(evidence: Evidence, role: str, rule: Rule) -> bool:
    score, content = evidence.scores.get(role), role in ("induction", "duplicate_token")
    return score is not None and score.reaches(rule.attention, content=content, lost_on_control=rule.lost_on_control)


_TARGETS = {
    "induction": "the tokens after earlier copies",
    "previous_token": "the token before",
    "duplicate_token": "earlier copies of the token",
    "first_token": "the first token",
}


def _attends(score: HeadScore) -> str:
    interval = "" if score.ci95 is None else f" [{score.ci95[0]:.2f}, {score.ci95[1]:.2f}]"
    control = "" if score.control is None else f", on the control {score.control:.2f}"
    return f"attends to {_TARGETS[score.detector]}: {score.mean:.2f}{interval}, by chance {score.chance:.2f}{control}"


def _no_stripe(evidence: Evidence, rule: Rule) -> str:
    score = evidence.scores.get("induction")
    if score is None:
        return "no role was scored"
    if score.mean >= rule.attention:
        return f"{_attends(score)}, so not for what the tokens are"
    best = max(evidence.scores.values(), key=lambda one: round(one.mean, 6))
    return (
        f"attends to the tokens after earlier copies only {score.mean:.2f} (it takes {rule.attention}); "
        f"most to {best.detector.replace('_', ' ')}, {best.mean:.2f}"
    )


def _copying(copying: Copying | None, rule: Rule) -> str:
    match _copies(copying, rule):
        case "unknown":
            return "copying is not known: its weights cannot be told apart"
        case "copies":
            verb = "raises the token it attends to"
        case "suppresses":
            verb = "lowers the token it attends to"
        case "neither":
            verb = "neither raises nor lowers the token it attends to by much"
    assert copying is not None
    eigenvalue = "none" if copying.eigenvalue is None else f"{copying.eigenvalue:+.2f}"
    return f"{verb}: direct copying {copying.direct.mean:+.2f}, eigenvalue score {eigenvalue}"


def q_text(q: float) -> str:
    """A q-value in words; rounding ends at 1e-15."""
    return f"q {q:.1g}" if q >= 1e-15 else "q < 1e-15"


def _nats(estimate: Estimate) -> str:
    interval = "" if estimate.ci95 is None else f" [{estimate.ci95[0]:+.3f}, {estimate.ci95[1]:+.3f}]"
    return f"{estimate.mean:+.3f}{interval} nats"
