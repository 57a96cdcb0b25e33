"""Delimiter: attends to the nearest earlier delimiter; a second sink, or a carrier of what is gathered there.

    prompt      repeated random tokens in which every seventh different token is a comma, full stop, semicolon or line
                break of the model's own tokenizer
    score       attention on the nearest earlier delimiter; the control is the same places with random tokens there
    zero, mean  change of the second copy's loss without the head
    specific    the same when the head no longer reads the delimiters
    no_effect_specific    the same as a test of equivalence, within +-0.01 nats

`carrier` where what it reads at the delimiter has an effect, `second_sink` where it is shown to have none; the latter
is a `correlate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headscope.evidence.atlas.finding import RoleFinding
from headscope.evidence.atlas.outcome import RULE, Judged, OutcomeRule, judge, shows_none, sign
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import METHODS, RoleRunner, chance_of
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.atlas.words import all_known, token_ids
from headscope.heads import HeadId
from headscope.interventions.ablation import AblatedHeads, Ablator, losses
from headscope.interventions.knockout import Knockout, reads_values
from headscope.model.model import Model
from headscope.probes.probe import Probe, Tokens

TEXTS = (",", ".", ";", "\n")
EVERY = 7


def delimiters(model: Model) -> tuple[int, ...]:
    """Ids of the delimiters that are one token each.

    Raises:
        NotAsked: the model has no tokenizer, or none of them is one token.
    """
    read = [token_ids(model, text) for text in TEXTS]
    found = tuple(dict.fromkeys(ids[0] for ids in read if len(ids) == 1 and all_known(model, ids)))
    if not found:
        raise NotAsked("its tokenizer has no token for a comma, full stop, semicolon or line break alone")
    return found


def _with_delimiters(prompt: Tokens, ids: Sequence[int], start: int) -> Tokens:
    """The prompt with every seventh different token replaced at all its places; the start token excepted."""
    _, first = np.unique(prompt[start:], return_index=True)
    different = prompt[start:][np.sort(first)]
    made = prompt.copy()
    for number, token in enumerate(different[EVERY - 1 :: EVERY]):
        made[start:][prompt[start:] == token] = ids[number % len(ids)]
    return made


def _nearest(prompt: Tokens, ids: Sequence[int]) -> np.ndarray:
    """(query, nearest earlier delimiter) of each query that has one and is none [place, 2]."""
    is_delimiter = np.isin(prompt, ids)
    last = np.maximum.accumulate(np.where(is_delimiter, np.arange(len(prompt)), -1))
    query = np.arange(1, len(prompt))
    key = last[:-1]
    return np.stack([query, key], axis=1)[(key >= 0) & ~is_delimiter[1:]]


def _prompts(runner: RoleRunner, prompts: Sequence[Tokens]) -> tuple[Tokens, ...]:
    start = 0 if runner.model.bos_token_id is None else 1
    ids = delimiters(runner.model)
    return tuple(_with_delimiters(prompt, ids, start) for prompt in prompts)


def _score(runner: RoleRunner) -> Scored:
    ids = delimiters(runner.model)
    prompts = _prompts(runner, runner.probe.prompts)
    places = [_nearest(prompt, ids) for prompt in prompts]

    def read() -> dict[str, np.ndarray]:
        return {
            "score": runner.attention(prompts, {"score": places})["score"],
            "control": runner.attention(runner.probe.prompts, {"score": places})["score"],
        }

    found = runner.kept("delimiter", read)
    return Scored(
        heads=runner.heads,
        score=found["score"],
        chance=np.full(len(runner.heads), np.mean([chance_of(one) for one in places])),
        control=found["control"],
        probe=dict(runner.probe.settings) | {"kind": "delimiters", "ids": list(ids), "every": EVERY},
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    ids = delimiters(runner.model)
    prompts = _prompts(runner, runner.held_out.prompts)
    queries = {"second_copy": runner.copy_queries["second_copy"]}
    probe = Probe(prompts=prompts, controls=None, settings={})
    corpus = Probe(prompts=_prompts(runner, runner.probe.prompts), controls=None, settings={})
    worlds: list[AblatedHeads] = [frozenset(), *(frozenset([head]) for head in heads)]
    found: dict[HeadId, dict[str, Sample]] = {head: {} for head in heads}
    for method in METHODS:
        ablator = Ablator.of(runner.model, probe, method=method, corpus=corpus, seed=runner.seed)
        rows = losses(ablator, prompts, queries, worlds)["second_copy"]
        for head, row in zip(heads, rows[1:], strict=True):
            found[head][method] = Sample(values=row - rows[0])
    if reads_values(runner.model):
        places = [_nearest(prompt, ids) for prompt in prompts]
        rows = losses(Knockout(model=runner.model, places=places, how="drop"), prompts, queries, worlds)["second_copy"]
        for head, row in zip(heads, rows[1:], strict=True):
            found[head]["specific"] = Sample(values=row - rows[0])
            found[head]["no_effect_specific"] = Sample(values=row - rows[0], within_nats=RULE.within_nats)
    return found


def _judge(finding: RoleFinding, rule: OutcomeRule = RULE) -> Judged:
    found = judge(finding, rule)
    variant = None
    if shows_none(finding.tests.get("no_effect_specific"), rule):
        variant = "second_sink"
    elif sign(finding.tests.get("specific"), rule):
        variant = "carrier"
    return Judged(outcome=found.outcome, reasons=found.reasons, variant=variant)


ROLE = Role(
    name="delimiter",
    order=130,
    letter="T",
    colour="#882255",
    sentence="attends to the nearest earlier delimiter, and what it reads there matters",
    look_alike="a second sink, which reads nothing there: shown where dropping what it reads changes nothing",
    score=_score,
    test=_test,
    judge=_judge,
    score_passes=2.2,
    test_passes=2.0,
)
