"""A comparison of scans that were kept, as a store of a sweep keeps them: means and intervals, and no single prompts.

    error       the longer side of a score's interval / t(0.975, prompts - 1)
    difference  second minus first, with Welch's interval and p from both errors
    nearest     1 - mean over heads and roles of |difference of scores|, of models with the same heads

Heads go by their numbers: what would say otherwise, their patterns, is not kept. Scans of the same prompts are compared
as if these were independent: intervals are then wider than those of `headscope.compare`, which pairs them.

Cost: no model is loaded.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from headscope.errors import ArgumentError, brief
from headscope.evidence.compare.changes import head_changes, heads_of, label_of, side_of, unlike
from headscope.evidence.compare.finding import finding
from headscope.evidence.compare.result import RULE, Comparison, How, Likeness, PairChange
from headscope.evidence.scan.result import HeadScore, Scan, Timing
from headscope.heads import HeadId
from headscope.records.common import Estimate
from headscope.stats import Summary, t_quantile, two_summaries

WHY = "scans that were kept hold means and intervals: compared as if their prompts were independent, heads by number"


def compare_scans(scans: Sequence[Scan]) -> Comparison:
    """What changed from the first scan to each other one.

    Raises:
        ArgumentError: fewer than two scans, or scans with other prompts.
    """
    started = time.perf_counter()
    if len(scans) < 2:
        raise ArgumentError(f"{len(scans)} scan was given; a comparison needs at least two.")
    first = scans[0].probe
    others = {key for one in scans for key in first.keys() | one.probe.keys() if one.probe.get(key) != first.get(key)}
    if others := sorted(others - {"n_prompts"}):
        values = (f"{key} ({', '.join(sorted({brief(one.probe.get(key)) for one in scans}))})" for key in others)
        raise ArgumentError(f"the scans' prompts differ in {'; '.join(values)}; compare scans of one kind of prompts.")
    labels = [label_of(index) for index in range(len(scans))]
    nearest: list[Likeness] = []
    for (a, one), (b, two) in combinations(zip(labels, scans, strict=True), 2):
        ours, theirs = ({(score.head, score.detector): score.mean for score in scan.scores} for scan in (one, two))
        if ours.keys() == theirs.keys():
            apart = np.mean([abs(ours[place] - theirs[place]) for place in ours])
            nearest.append(Likeness(a=a, b=b, similarity=float(1 - apart), by="scores"))
    return Comparison(
        sides=tuple(side_of(*one) for one in zip(labels, scans, strict=True)),
        pairs=tuple(_pair(labels[0], label, scans[0], scan) for label, scan in zip(labels[1:], scans[1:], strict=True)),
        nearest=tuple(sorted(nearest, key=lambda one: (-round(one.similarity, 6), one.a, one.b))),
        rule=RULE,
        timing=Timing(wall_s=time.perf_counter() - started, tokens=sum(one.timing.tokens for one in scans)),
    )


def _pair(a: str, b: str, one: Scan, two: Scan) -> PairChange:
    ours, theirs = ({(score.head, score.detector): score for score in scan.scores} for scan in (one, two))
    same = heads_of(one) == heads_of(two)
    estimates: dict[tuple[HeadId, str], tuple[Estimate, float]] = {}
    for place, score in ours.items():
        if same and place in theirs:
            mean, ci95, p = two_summaries(_summary(score), _summary(theirs[place]))
            estimates[place] = Estimate(mean=mean, ci95=ci95), p
    counterparts: dict[HeadId, tuple[HeadId, How]] = {head: (head, "number") for head in heads_of(one) if same}
    changes = head_changes(one, two, counterparts, estimates)
    unmatched = () if same else tuple(heads_of(two))
    differ = tuple(unlike(one, two))
    return PairChange(
        a=a,
        b=b,
        paired=False,
        why=WHY,
        differ=differ,
        similarity=None,
        heads=changes,
        unmatched=unmatched,
        finding=finding((a, b), changes, unmatched, differ),
    )


def _summary(score: HeadScore) -> Summary:
    """A score's mean, its standard error and degrees of freedom; no error from a single prompt."""
    if score.ci95 is None or score.n_prompts < 2:
        return Summary(mean=score.mean, error=None, degrees=0)
    half = max(score.mean - score.ci95[0], score.ci95[1] - score.mean)
    return Summary(mean=score.mean, error=half / t_quantile(score.n_prompts - 1), degrees=score.n_prompts - 1)
