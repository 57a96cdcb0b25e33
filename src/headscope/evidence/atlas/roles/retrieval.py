"""Retrieval: attends to the value of the entity that is asked for, among values that are all in one context.

    score       attention from the last token to the asked entity's value (`headscope.evidence.atlas.asking`)
    chance      1 / 5: a head that looks at every value alike, as induction does
    control     the same place when an entity is asked that has no statement
    zero, mean  drop of logit(asked value) - logit(another's value)
    specific    the same drop when the head no longer reads the asked value
    transfer    the same drop when the head's z at the last token is that of a corrupt prompt, which asks for the
                other entity
    look_alike_induction    the transfer while all other induction heads are mean-ablated

Heads for the last or the n-th value score 1 / 5, and the same on the control.

Reference:
    Wu et al. 2024, arXiv:2404.15574, whose scores count literal copying, so that induction heads score highest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headscope.evidence.atlas.asking import N_ENTITIES, asking
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import Sample
from headscope.heads import HeadId


def _score(runner: RoleRunner) -> Scored:
    asked = asking(runner)

    def read() -> dict[str, np.ndarray]:
        found = runner.attention(asked.prompts, {"score": asked.answer, "others": asked.others})
        return found | {"control": runner.attention(asked.absent, {"control": asked.answer})["control"]}

    found = runner.kept("asking", read)
    return Scored(
        heads=runner.heads,
        score=found["score"],
        chance=np.full(len(runner.heads), 1 / N_ENTITIES),
        control=found["control"],
        measures={"other values": found["others"]},
        probe={"kind": "asking", "n_prompts": runner.n_prompts, "n_entities": N_ENTITIES, "seed": runner.seed},
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    asked = asking(runner)
    found = runner.tests(
        heads, asked.prompts, asked.choices, corpus=asked.corpus, places=asked.answer, sources=asked.corrupt
    )
    others = runner.induction_heads
    if others:
        alone = runner.moved(heads, asked.prompts, asked.corrupt, asked.choices, without=others, corpus=asked.corpus)
        for head in heads:
            found[head]["look_alike_induction"] = Sample(values=alone[head])
    return found


ROLE = Role(
    name="retrieval",
    order=100,
    letter="Q",
    colour="#332288",
    sentence="attends to the value of the entity that is asked for",
    look_alike="induction, which looks at every value alike: the transfer must survive the ablation of all its heads",
    score=_score,
    test=_test,
    score_passes=0.5,
    test_passes=1.2,
)
