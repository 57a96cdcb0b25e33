"""Local: reads the last few tokens alone, on every probe.

    score     attention on the last 8 tokens, key 0 left out; what is left for all others but key 0 must be at most 0.05
              on repeated tokens, on fresh ones, and where an entity is asked for (`retrieval`)
    no_effect_masked_...    all keys in between masked for this head alone: the loss within +-0.01 nats, by equivalence

`primary`: masking is shown to change nothing, while the head's removal has an effect. A head that is local on fresh
tokens and far-reaching on repeats fails the score; one whose little attention far away matters fails the mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headscope.evidence.atlas.asking import asking
from headscope.evidence.atlas.finding import RoleFinding
from headscope.evidence.atlas.outcome import RULE, Judged, OutcomeRule, in_words, shows_none, sign
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.atlas.shapes import WINDOW, reach
from headscope.evidence.scan.result import THRESHOLD
from headscope.heads import HeadId
from headscope.probes.probe import Tokens

FAR = 0.05
"""Most attention outside."""


def _score(runner: RoleRunner) -> Scored:
    shapes = runner.shapes
    far = {"far": shapes["far"], "far random": shapes["far random"]}
    try:
        prompts = asking(runner).prompts
        far["far asking"] = runner.kept("reach", lambda: reach(runner.model, runner.heads, prompts))["far"]
    except NotAsked:
        pass  # the other two probes decide
    length = len(runner.probe.prompts[0])
    chance = float(np.mean(WINDOW / (np.arange(2 * WINDOW, length) + 1)))
    near = shapes["near"]
    has = (near.mean(0) >= THRESHOLD) & np.all([one.mean(0) <= FAR for one in far.values()], axis=0)
    return Scored(
        heads=runner.heads,
        score=near,
        chance=np.full(len(runner.heads), chance),
        measures=far,
        has_score=has,
        probe=dict(runner.probe.settings),
    )


def _between(tokens: Tokens) -> np.ndarray:
    """Every (query, key) with the key neither first nor among the last few."""
    query, key = np.tril_indices(len(tokens), -WINDOW)
    return np.stack([query, key], axis=1)[key > 0]


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    found: dict[HeadId, dict[str, Sample]] = {}
    places = [_between(prompt) for prompt in runner.held_out.prompts]
    masked = runner.dropped_places(dict.fromkeys(heads, places), how="mask")
    for head in heads:
        found[head] = {
            method: Sample(values=runner.removal(head, f"{method} second_copy")) for method in ("zero", "mean")
        }
        for domain, values in masked.get(head, {}).items():
            found[head][f"no_effect_masked_{domain}"] = Sample(values=values, within_nats=RULE.within_nats)
    return found


def _judge(finding: RoleFinding, rule: OutcomeRule = RULE) -> Judged:
    if not finding.has_score:
        return Judged(outcome="null", reasons=())
    masked = [test for name, test in finding.tests.items() if name.startswith("no_effect_masked")]
    if not masked:
        return Judged(outcome=None, reasons=("no keys were masked",))
    reasons = tuple(in_words(name, test) for name, test in finding.tests.items())
    if not all(shows_none(test, rule) for test in masked):
        return Judged(outcome="correlate", reasons=(*reasons, "that it needs no key in between is not shown"))
    if not any(sign(finding.tests[method], rule) for method in ("zero", "mean")):
        return Judged(outcome="correlate", reasons=(*reasons, "no effect of the head itself was found"))
    return Judged(outcome="primary", reasons=reasons)


ROLE = Role(
    name="local",
    order=90,
    letter="L",
    colour="#a6761d",
    sentence="reads the last few tokens alone",
    look_alike="a head that is local on fresh tokens and far-reaching on repeats: every probe counts, and the keys in "
    "between are masked",
    score=_score,
    test=_test,
    judge=_judge,
    explains=False,
    score_passes=0.5,
)
