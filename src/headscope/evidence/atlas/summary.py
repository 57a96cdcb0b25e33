"""From findings to heads: q-values, outcomes, and for each head what it is and what no role explains.

    unexplained share = 1 - (loss when the head no longer reads its roles' targets - clean) / (loss without it - clean)

both by zero, on the held-out second copies, over prompts together. It can be below 0 (the rest of what it reads works
against its roles) or above 1. It is not known where zero ablation has no effect, or not in the direction of the mean
ablation by which the head matters: then it would be the share of nothing, or of something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from headscope.evidence.atlas.finding import HELD, Effect, RoleFinding
from headscope.evidence.atlas.outcome import RULE, OutcomeRule, sign
from headscope.evidence.atlas.result import HeadSummary, Status
from headscope.evidence.atlas.role import Role
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked
from headscope.heads import HeadId
from headscope.records.common import Estimate
from headscope.stats import benjamini_hochberg, p_values


def judged(
    findings: Sequence[RoleFinding], roles: Mapping[str, Role], rule: OutcomeRule = RULE
) -> tuple[RoleFinding, ...]:
    """Findings with their q-values and outcomes, ordered by head and role."""
    scores = benjamini_hochberg(np.asarray([one.p_score for one in findings]))
    places = [(at, name) for at, one in enumerate(findings) for name in one.tests]
    q_tests: dict[tuple[int, str], float] = {}
    for equivalence in (False, True):
        some = [(at, name) for at, name in places if (findings[at].tests[name].within_nats is not None) == equivalence]
        values = benjamini_hochberg(np.asarray([findings[at].tests[name].p_value for at, name in some]))
        q_tests |= dict(zip(some, values.tolist(), strict=True))
    made: list[RoleFinding] = []
    for at, one in enumerate(findings):
        tests = {name: replace(test, q_value=q_tests[at, name]) for name, test in one.tests.items()}
        q = float(scores[at])
        unsure = one.has_score and one.by_score and q > rule.false_discovery
        one = replace(one, q_score=q, tests=tests, has_score=one.has_score and not unsure)
        found = roles[one.role].judge(one, rule)
        if unsure:
            beside = "chance" if one.control is None else "its control"
            found = replace(found, reasons=(f"the score is not shown to be above {beside} (q {q:.2g})",))
        made.append(replace(one, outcome=found.outcome, variant=found.variant or one.variant, reasons=found.reasons))
    order = {name: at for at, name in enumerate(roles)}
    return tuple(sorted(made, key=lambda one: (one.head, order[one.role])))


def summaries(
    runner: RoleRunner, findings: Sequence[RoleFinding], roles: Sequence[Role], *, quick: bool, rule: OutcomeRule = RULE
) -> tuple[HeadSummary, ...]:
    """Every head: unexplained first, by the size of its effect, then those that hold a role, then the others."""
    of: dict[HeadId, list[RoleFinding]] = {}
    for one in findings:
        of.setdefault(one.head, []).append(one)
    removed: dict[HeadId, Effect] = {} if quick else _removed(runner)
    known = {role.name: role for role in roles}
    held_by = {
        head: sorted(
            (one for one in mine if one.outcome in HELD),
            key=lambda one: (not known[one.role].explains, *_strength(one)),
        )
        for head, mine in of.items()
    }
    matter = {head: held for head, held in held_by.items() if held and sign(removed.get(head), rule)}
    unexplained = _unexplained(runner, matter, known, removed, rule)
    made: list[HeadSummary] = []
    for head, mine in of.items():
        held, test = held_by[head], removed.get(head)
        status: Status = "not_tested"
        explained = any(known[one.role].explains for one in held)
        # A role whose score the head has, and for which it was not among those that are tested, may explain it.
        open_role = any(one.has_score and one.outcome is None and known[one.role].explains for one in mine)
        if test is not None and sign(test, rule) and not explained and not open_role:
            status = "unexplained"
        elif held:
            status = "held"
        elif test is not None and not open_role:
            status = "idle"
        made.append(
            HeadSummary(
                head=head,
                status=status,
                strongest=held[0].role if held else None,
                roles=tuple(one.role for one in held),
                correlates=tuple(one.role for one in mine if one.outcome == "correlate"),
                removed=test,
                unexplained=unexplained.get(head),
            )
        )
    rank = {"unexplained": 0, "held": 1, "not_tested": 2, "idle": 3}
    return tuple(sorted(made, key=lambda one: (rank[one.status], -_size(one), one.head)))


def _strength(one: RoleFinding) -> tuple[int, float, float]:
    effect = max((abs(test.estimate.mean) for name, test in one.tests.items() if name in ("zero", "mean")), default=0.0)
    return HELD.index(one.outcome) if one.outcome in HELD else len(HELD), -effect, -one.score.mean


def _size(one: HeadSummary) -> float:
    return 0.0 if one.removed is None else abs(one.removed.estimate.mean)


def _removed(runner: RoleRunner) -> dict[HeadId, Effect]:
    """What mean ablation of each head does to the held-out second copies; empty where no such prompt fits the model."""
    try:
        values = runner.removals["mean second_copy"]
    except NotAsked:
        return {}
    p = p_values(values)
    q = benjamini_hochberg(p)
    return {
        head: Effect(estimate=Estimate.of(values[:, at]), p_value=float(p[at]), q_value=float(q[at]))
        for at, head in enumerate(runner.heads)
    }


def _unexplained(
    runner: RoleRunner,
    held_by: Mapping[HeadId, Sequence[RoleFinding]],
    roles: Mapping[str, Role],
    effects: Mapping[HeadId, Effect],
    rule: OutcomeRule,
) -> dict[HeadId, float]:
    """By head; see this module's text. Heads whose roles have no targets on repeated tokens are left out."""
    places: dict[HeadId, list[np.ndarray]] = {}
    whole: dict[HeadId, float] = {}
    for head, held in held_by.items():
        targets = [(find, one) for one in held if (find := roles[one.role].targets) is not None]
        zero = runner.removal(head, "zero second_copy")
        whole[head] = float(zero.mean())
        shown = abs(whole[head]) >= rule.effect_nats and float(p_values(zero)) <= rule.false_discovery
        if targets and shown and whole[head] * effects[head].estimate.mean > 0:
            places[head] = [
                np.unique(np.concatenate([find(prompt, one) for find, one in targets]), axis=0)
                for prompt in runner.held_out.prompts
            ]
    dropped = runner.dropped_places(places)
    return {head: 1.0 - float(values["second_copy"].mean()) / whole[head] for head, values in dropped.items()}
