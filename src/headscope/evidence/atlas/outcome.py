"""The outcome of one role for one head, by a published rule.

    score       reaches the role's least score, at least half of it is lost on the matched control, and its difference
                from the control (from chance, where the role has none) is significant
    needed      zero and mean ablation both lower the role's outcome, by >= 0.01 nats and significantly; -1 where either
                raises it and neither lowers it
    its own     where the test `specific` was made: dropping only what the head reads at the role's targets does so too
    transfers   putting the head's z of another prompt in moves the outcome there, or restoring it alone does
    excluded    every test `look_alike...` comes out above 0

    no score                                       -> null
    score, a look-alike not excluded               -> correlate
    score, needed (its own), transfers if tried    -> primary
    score, needed (its own) or transfers           -> secondary
    score, needed or transfers with the other sign -> interferer
    score, none of these                           -> correlate

Without interventions a head that has the score has no outcome yet: it is `None`. Significant means q <= 0.05, by
Benjamini and Hochberg over all heads and roles: over the scores, over the tests of an effect, and over the tests of
equivalence, each family for itself. "Not significant" is never taken for "no effect": that takes a test of equivalence,
which has a p-value of its own (`headscope.stats.equivalence_p`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from headscope.evidence.atlas.finding import Effect, Outcome, RoleFinding


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRule:
    """Every number of the rule that all roles share."""

    false_discovery: float = 0.05
    """Largest q-value."""
    effect_nats: float = 0.01
    """Least size of an effect."""
    within_nats: float = 0.01
    """An effect inside +- this counts as none, where a test of equivalence shows it."""
    lost_on_control: float = 0.5
    """Least share of the score that must be gone on the control."""


RULE = OutcomeRule()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a head is for a role, and why."""

    outcome: Outcome | None
    """None where it has the score and no intervention was tried."""
    reasons: tuple[str, ...]
    """In words."""
    variant: str | None = None
    """Which kind of the role it is, for roles that have kinds, like `dormant`."""


Judge = Callable[[RoleFinding, OutcomeRule], Judged]


def sign(test: Effect | None, rule: OutcomeRule) -> Literal[-1, 0, 1]:
    """The sign of an effect that is large enough and significant; 0 otherwise, and where it was not tested."""
    if test is None or test.q_value is None or test.q_value > rule.false_discovery:
        return 0
    mean = test.estimate.mean
    return 1 if mean >= rule.effect_nats else -1 if mean <= -rule.effect_nats else 0


def shows_none(test: Effect | None, rule: OutcomeRule) -> bool:
    """Whether a test of equivalence shows that there is no effect of the size that counts."""
    return (
        test is not None
        and test.within_nats is not None
        and test.q_value is not None
        and test.q_value <= rule.false_discovery
    )


def judge(finding: RoleFinding, rule: OutcomeRule = RULE) -> Judged:
    """The outcome by the rule above."""
    if not finding.has_score:
        return Judged(outcome="null", reasons=())
    tests = finding.tests
    reasons = tuple(in_words(name, test) for name, test in tests.items())
    if not tests:
        return Judged(outcome=None, reasons=("no intervention was tried",))
    zero, mean = sign(tests.get("zero"), rule), sign(tests.get("mean"), rule)
    needed = 1 if zero > 0 and mean > 0 else -1 if min(zero, mean) < 0 and max(zero, mean) <= 0 else 0
    if "specific" in tests and sign(tests["specific"], rule) != needed:
        needed = 0
    transfers = sign(tests["transfer"], rule) if "transfer" in tests else None
    alike = [name for name, test in tests.items() if name.startswith("look_alike") and sign(test, rule) <= 0]
    if alike:
        return Judged(outcome="correlate", reasons=(*reasons, "a look-alike is not excluded"))
    outcome: Outcome = "correlate"
    if needed > 0 and transfers in (1, None):
        outcome = "primary"
    elif needed > 0 or transfers == 1:
        outcome = "secondary"
    elif needed < 0 or transfers == -1:
        outcome = "interferer"
    return Judged(outcome=outcome, reasons=reasons)


_SAYS = {
    "zero": "zero ablation lowers the role's outcome by",
    "mean": "mean ablation lowers it by",
    "specific": "dropping only what it reads at the role's targets lowers it by",
    "transfer": "putting it in moves the outcome by",
}


def in_words(name: str, test: Effect) -> str:
    """One test as a sentence."""
    interval = test.estimate.ci95
    bounds = "" if interval is None else f" [{interval[0]:+.3f}, {interval[1]:+.3f}]"
    says = _SAYS.get(name, name.replace("_", " ") + ":")
    q = "" if test.q_value is None else f", q {max(test.q_value, 1e-15):.1g}"
    kind = "" if test.within_nats is None else f" (equivalence within +-{test.within_nats} nats)"
    return f"{says} {test.estimate.mean:+.3f}{bounds} nats{kind}{q}"
