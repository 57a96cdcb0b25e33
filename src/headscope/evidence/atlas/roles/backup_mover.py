"""Backup mover: takes over once the name movers are gone.

    movers      heads with the score of `name_mover` that move the name by themselves
    score       attention from the last token to the name that is named once, while the movers are mean-ablated
    chance      a third of what the head gives to all three names then
    control     the same place where three names are given
    zero, mean  drop of logit(named once) - logit(repeated) without the head, while the movers are ablated alike
    transfer    the same drop, while the movers are mean-ablated, when the head's z at the last token is that of the
                corrupt prompt
    look_alike_mover    half of the mean drop, minus what the head's mean ablation does while the movers are there: a
                mover acts in either case

The score itself takes an ablation, so a quick atlas does not ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headscope.evidence.atlas.ioi import Objects, intact_drops, moved_directly, objects, reading
from headscope.evidence.atlas.outcome import RULE
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.roles.name_mover import ROLE as MOVER
from headscope.evidence.atlas.runner import METHODS, RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.scan.result import THRESHOLD
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, losses
from headscope.probes.probe import Probe


def _movers(runner: RoleRunner, asked: Objects) -> tuple[HeadId, ...]:
    """Heads with a mover's score whose own effect is that of a mover.

    Raises:
        NotAsked: there is none.
    """
    _, found = reading(runner)
    once, control = found["once"].mean(0), found["once control"].mean(0)
    looks = (once >= MOVER.least) & (once - control >= RULE.lost_on_control * once)
    heads = [head for head, yes in zip(runner.heads, looks, strict=True) if yes]
    directly = moved_directly(runner, asked, heads)
    movers = tuple(head for head in heads if directly[head].mean() >= RULE.effect_nats)
    if not movers:
        raise NotAsked("no head moves a name, so none can take over")
    return movers


def _ablators(runner: RoleRunner, asked: Objects) -> dict[str, Ablator]:
    probe = Probe(prompts=asked.prompts, controls=None, settings={})
    return {
        method: Ablator.of(runner.model, probe, method=method, corpus=asked.corpus, seed=runner.seed)
        for method in METHODS
    }


def _score(runner: RoleRunner) -> Scored:
    asked = objects(runner)
    movers = _movers(runner, asked)
    ablator = _ablators(runner, asked)["mean"]
    places = {"once": asked.named_once, "again": asked.repeated, "before": asked.first_of_repeated}
    found = runner.attention(asked.prompts, places, ablator=ablator, without=movers)
    control = runner.attention(asked.controls, {"once": asked.named_once}, ablator=ablator, without=movers)["once"]
    score = found["once"]
    mean = score.mean(0)
    has = (mean >= THRESHOLD) & (mean - control.mean(0) >= RULE.lost_on_control * mean)
    has &= np.asarray([head not in movers for head in runner.heads])
    _, before = reading(runner)
    return Scored(
        heads=runner.heads,
        score=score,
        chance=(found["once"] + found["again"] + found["before"]).mean(0) / 3,
        control=control,
        measures={"with the movers": before["once"]},
        has_score=has,
        probe={
            "kind": "objects",
            "n_prompts": runner.n_prompts,
            "n_names": asked.n_names,
            "movers": list(map(str, movers)),
            "seed": runner.seed,
        },
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    asked = objects(runner)
    movers = frozenset(_movers(runner, asked))
    found: dict[HeadId, dict[str, Sample]] = {head: {} for head in heads}
    for method, ablator in _ablators(runner, asked).items():
        worlds = [movers, *(movers | {head} for head in heads)]
        rows = losses(ablator, asked.prompts, asked.choices, worlds, base=movers)["difference"]
        for head, row in zip(heads, rows[1:], strict=True):
            found[head][method] = Sample(values=rows[0] - row)
    moved = runner.moved(heads, asked.prompts, asked.corrupt, asked.choices, without=tuple(movers), corpus=asked.corpus)
    intact = intact_drops(runner, asked, heads)
    for head in heads:
        found[head]["transfer"] = Sample(values=moved[head])
        alike = found[head]["mean"].values / 2 - np.abs(intact[head]["mean"])
        found[head]["look_alike_mover"] = Sample(values=alike)
    return found


ROLE = Role(
    name="backup_mover",
    order=155,
    letter="B",
    colour="#ddcc77",
    sentence="attends to the name that is named once and says it, once the name movers are gone",
    look_alike="a name mover, which acts while the others are there",
    score=_score,
    test=_test,
    score_intervenes=True,
    score_passes=1.0,
    test_passes=0.8,
)
