"""Order-n induction: attends to the continuation whose last two tokens match, not to one that matches the last alone.

    prompt      x A B ... y A C ... x A     the order of both balanced, random tokens between
    score       attention from the last token to B; the control is C, which follows the same last token
    chance      half of what the head gives to both
    zero, mean  drop of logit(B) - logit(C)
    specific    the same drop when the head no longer reads B
    transfer    the same drop when the head's z at the last token is that of the corrupt prompt that ends with y A

An induction head of order 1 looks at both alike and moves neither logit against the other. Recency and primacy average
out over the two orders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headscope.errors import TokenError
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.heads import HeadId
from headscope.interventions.choices import Choices
from headscope.probes.probe import Probe, Tokens
from headscope.probes.repeated import random_tokens

FILLER = 18
"""Random tokens, before, between and after the two statements."""
NAMED = 5
"""x, y, A, B, C."""


class _Prompts:
    """Prompts, their corrupt, the places of B and C, and a corpus."""

    def __init__(self, runner: RoleRunner) -> None:
        start = 0 if runner.model.bos_token_id is None else 1
        length = start + FILLER + 8
        if runner.model.max_tokens is not None and length > runner.model.max_tokens:
            raise NotAsked(f"its prompts have {length} tokens and the model reads at most {runner.model.max_tokens}")
        needed = start + FILLER + NAMED
        try:
            drawn = random_tokens(runner.model, n_prompts=2 * runner.n_prompts, length=needed, seed=runner.seed).prompts
        except TokenError as error:
            raise NotAsked(str(error).rstrip(".")) from error
        if any(len(np.unique(one)) < needed for one in drawn):
            raise NotAsked(f"its prompts need {needed} different tokens")
        made = [_made(tokens, start, index, runner.seed) for index, tokens in enumerate(drawn)]
        mine, rest = made[: runner.n_prompts], made[runner.n_prompts :]
        self.prompts = tuple(one[0] for one in mine)
        self.corrupt = tuple(one[1] for one in mine)
        self.matching = tuple(np.asarray([[length - 1, one[2]]]) for one in mine)
        self.other = tuple(np.asarray([[length - 1, one[3]]]) for one in mine)
        self.choices = Choices(
            first=np.asarray([one[0][one[2]] for one in mine]), second=np.asarray([one[0][one[3]] for one in mine])
        )
        self.corpus = Probe(
            prompts=tuple(one[0] for one in rest), controls=None, settings={"kind": "order n, other prompts"}
        )


def _made(tokens: Tokens, start: int, index: int, seed: int) -> tuple[Tokens, Tokens, int, int]:
    """Prompt, corrupt prompt, and where B and C are."""
    random = np.random.default_rng([seed, index])
    head, filler, (x, y, a, b, c) = tokens[:start], tokens[start : start + FILLER], tokens[start + FILLER :]
    cuts = np.sort(random.integers(1, FILLER, 2))
    before, between, after = np.split(filler, cuts)
    statements = [np.asarray([x, a, b]), np.asarray([y, a, c])]
    if index % 2:
        statements.reverse()
    body = np.concatenate([head, before, statements[0], between, statements[1], after])
    prompt, corrupt = (np.concatenate([body, [one, a]]) for one in (x, y))
    return prompt, corrupt, int(np.flatnonzero(body == b)[0]), int(np.flatnonzero(body == c)[0])


def _score(runner: RoleRunner) -> Scored:
    prompts = _Prompts(runner)
    found = runner.kept(
        "order_n", lambda: runner.attention(prompts.prompts, {"match": prompts.matching, "other": prompts.other})
    )
    return Scored(
        heads=runner.heads,
        score=found["match"],
        chance=(found["match"] + found["other"]).mean(0) / 2,
        control=found["other"],
        probe={"kind": "order_n", "n_prompts": runner.n_prompts, "n": 2, "filler": FILLER, "seed": runner.seed},
    )


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    prompts = _Prompts(runner)
    return runner.tests(
        heads,
        prompts.prompts,
        prompts.choices,
        corpus=prompts.corpus,
        places=prompts.matching,
        sources=prompts.corrupt,
    )


ROLE = Role(
    name="order_n",
    order=110,
    letter="N",
    colour="#117733",
    label="order-n induction",
    sentence="attends to the continuation whose last two tokens match, over one that matches the last alone",
    look_alike="induction of order 1, which looks at both alike; recency and primacy, by balancing the order",
    score=_score,
    test=_test,
    score_passes=0.3,
    test_passes=1.0,
)
