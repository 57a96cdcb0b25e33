"""Copy suppression: attends to the token that earlier layers predict, and lowers it.

    score       attention on the tokens after earlier copies, on repeated tokens, of heads whose direct path lowers what
                they attend to; the control is the same places where nothing repeats
    zero, mean  how far the second copy's loss falls without the head: it lowers what comes next
    specific    the same when the head no longer reads those tokens
    look_alike_anti_induction    the attention lost there when all other heads with a stripe are mean-ablated, beyond
                half of it: a head that finds the place by itself keeps its attention, one that looks for what they
                predict loses it

Reference:
    McDougall et al. 2023, arXiv:2310.04625.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headscope.errors import UnsupportedModel
from headscope.evidence.atlas.looking import on_repeats, places_of
from headscope.evidence.atlas.outcome import RULE
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.copying import TokenSpace
from headscope.evidence.scan.result import THRESHOLD
from headscope.evidence.verify.evidence import direct
from headscope.heads import HeadId

KEPT = 0.5
"""Share of its attention that a copy suppressor may keep without the heads that predict."""
_PLACES = places_of("induction")


def _score(runner: RoleRunner) -> Scored:
    score, control = runner.repeats["induction"], runner.repeats["induction control"]
    mean = score.mean(0)
    has = (mean >= THRESHOLD) & (mean - control.mean(0) >= RULE.lost_on_control * mean)
    try:
        circuits = TokenSpace(runner.model, seed=runner.seed)
    except UnsupportedModel as error:
        raise NotAsked(f"its weights cannot be read head by head ({str(error).rstrip('.')})") from error
    size = np.zeros(len(runner.heads))
    for at, head in enumerate(runner.heads):
        if has[at]:
            copying = circuits.copying([head])
            size[at] = copying.direct.mean
            has[at] = direct(copying) == "suppresses"
    return Scored(
        heads=runner.heads,
        score=score,
        chance=runner.repeats["induction chance"],
        control=control,
        measures={"direct copying": np.broadcast_to(size, score.shape)},
        has_score=has,
        probe=dict(runner.probe.settings),
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    prompts = runner.held_out.prompts
    places = {"stripe": [_PLACES(prompt) for prompt in prompts]}
    clean = runner.attention(prompts, places)["stripe"]
    # What a head attends to depends on the layers below it alone, so that one pass without all of them shows each head
    # without the others.
    without = runner.attention(prompts, places, ablator=runner.copy_ablators["mean"], without=runner.induction_heads)[
        "stripe"
    ]
    found: dict[HeadId, dict[str, Sample]] = {}
    for head, tests in on_repeats(runner, dict.fromkeys(heads, _PLACES), name="induction").items():
        at = scored.heads.index(head)
        found[head] = {name: Sample(values=-test.values) for name, test in tests.items()}
        lost = (1 - KEPT) * clean[:, at] - without[:, at]
        found[head]["look_alike_anti_induction"] = Sample(values=lost)
    return found


ROLE = Role(
    name="copy_suppression",
    order=120,
    letter="X",
    colour="#d55e00",
    sentence="attends to the token that earlier layers predict, and lowers it",
    look_alike="anti-induction, which finds the same place by itself: without the induction heads a copy suppressor "
    "loses its attention there",
    score=_score,
    test=_test,
    score_passes=0.0,
    test_passes=1.5,
)
