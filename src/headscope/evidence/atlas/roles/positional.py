"""Positional: attends a fixed number of tokens back, at least 2, whatever the tokens are.

score     the best offset's mean attention where nothing repeats (`headscope.evidence.atlas.shapes`)
zero, mean, specific    as for every detector; the targets are that offset's keys
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from headscope.evidence.atlas.finding import RoleFinding
from headscope.evidence.atlas.looking import on_repeats
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import Sample
from headscope.heads import HeadId
from headscope.probes.probe import Tokens


def _back(offset: int) -> Callable[[Tokens], np.ndarray]:
    """Every (query, query - offset)."""

    def places(tokens: Tokens) -> np.ndarray:
        query = np.arange(offset, len(tokens))
        return np.stack([query, query - offset], axis=1)

    return places


def _score(runner: RoleRunner) -> Scored:
    shapes = runner.shapes
    score, offset = shapes["offset score"], shapes["offset"]
    length = len(runner.probe.prompts[0])
    chance = [np.mean(1 / (np.arange(int(one), length) + 1)) for one in offset]
    return Scored(
        heads=runner.heads,
        score=score,
        chance=np.asarray(chance),
        measures={"offset": np.broadcast_to(offset, score.shape)},
        variants={head: f"{int(one)} back" for head, one in zip(runner.heads, offset, strict=True)},
        probe=dict(runner.probe.settings),
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    offset = dict(zip(scored.heads, scored.measures["offset"][0], strict=True))
    return on_repeats(runner, {head: _back(int(offset[head])) for head in heads})


def _targets(tokens: Tokens, finding: RoleFinding) -> np.ndarray:
    return _back(round(finding.measures["offset"]))(tokens)


ROLE = Role(
    name="positional",
    order=50,
    letter="O",
    colour="#cc79a7",
    sentence="attends a fixed number of tokens back, and what it reads there matters",
    look_alike="induction on one period: the score is read where nothing repeats",
    score=_score,
    test=_test,
    targets=_targets,
    score_passes=2.5,
)
