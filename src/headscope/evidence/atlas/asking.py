"""Prompts that ask for one of several entities' values: the probe of retrieval.

    [BOS]  E1 a b c V1  E2 a b c V2 ...  En a b c Vn   Ej a b c

Random tokens, all different but for those shown twice. Every value comes after an earlier copy of the same three
tokens, so that an induction head looks at all of them alike; the entity is four tokens before its value. Which is asked
is balanced over prompts.

    corrupt   the same with another entity asked
    absent    the same with an entity asked that has no statement
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headscope.errors import TokenError
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import NotAsked
from headscope.interventions.choices import Choices
from headscope.probes.probe import Probe, Tokens
from headscope.probes.repeated import random_tokens

N_ENTITIES = 5
CONTEXT = 3
"""Tokens between an entity and its value."""
STATEMENT = CONTEXT + 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asking:
    """The prompts, and where their answers are."""

    prompts: tuple[Tokens, ...]
    """Asking for one entity."""
    corrupt: tuple[Tokens, ...]
    """Asking for another."""
    absent: tuple[Tokens, ...]
    """Asking for one that has no statement."""
    corpus: Probe
    """Other prompts of the same form, for means."""
    answer: tuple[np.ndarray, ...]
    """For each prompt its last query and the asked value's key, [1, 2]."""
    others: tuple[np.ndarray, ...]
    """The same for the other values, [n - 1, 2]."""
    choices: Choices
    """The asked value against the corrupt prompt's."""


def asking(runner: RoleRunner) -> Asking:
    """Prompts of the runner's number and seed.

    Raises:
        NotAsked: context or vocabulary is too small.
    """
    start = 0 if runner.model.bos_token_id is None else 1
    length = start + N_ENTITIES * STATEMENT + 1 + CONTEXT
    needed = start + 2 * N_ENTITIES + CONTEXT + 1
    if runner.model.max_tokens is not None and length > runner.model.max_tokens:
        raise NotAsked(f"its prompts have {length} tokens and the model reads at most {runner.model.max_tokens}")
    try:
        drawn = random_tokens(runner.model, n_prompts=2 * runner.n_prompts, length=needed, seed=runner.seed).prompts
    except TokenError as error:
        raise NotAsked(str(error).rstrip(".")) from error
    if any(len(np.unique(one)) < needed for one in drawn):
        raise NotAsked(f"its prompts need {needed} different tokens")
    made = [_made(tokens, start, index % N_ENTITIES, runner.seed + index) for index, tokens in enumerate(drawn)]
    mine, rest = made[: runner.n_prompts], made[runner.n_prompts :]
    last = length - 1
    keys = [start + one * STATEMENT + STATEMENT - 1 for one in range(N_ENTITIES)]
    return Asking(
        prompts=tuple(one[0] for one in mine),
        corrupt=tuple(one[1] for one in mine),
        absent=tuple(one[2] for one in mine),
        corpus=Probe(prompts=tuple(one[0] for one in rest), controls=None, settings={"kind": "asking, other prompts"}),
        answer=tuple(np.asarray([[last, keys[one[3]]]]) for one in mine),
        others=tuple(np.asarray([[last, key] for at, key in enumerate(keys) if at != one[3]]) for one in mine),
        choices=Choices(
            first=np.asarray([one[0][keys[one[3]]] for one in mine]),
            second=np.asarray([one[0][keys[one[4]]] for one in mine]),
        ),
    )


def _made(tokens: Tokens, start: int, asked: int, seed: int) -> tuple[Tokens, Tokens, Tokens, int, int]:
    """Prompt, corrupt prompt, absent, and which entities the first two ask for."""
    head, body = tokens[:start], tokens[start:]
    names, values = body[:N_ENTITIES], body[N_ENTITIES : 2 * N_ENTITIES]
    context, unknown = body[2 * N_ENTITIES : 2 * N_ENTITIES + CONTEXT], body[2 * N_ENTITIES + CONTEXT :][:1]
    told = [np.concatenate([[name], context, [value]]) for name, value in zip(names, values, strict=True)]
    other = (asked + int(np.random.default_rng(seed).integers(1, N_ENTITIES))) % N_ENTITIES
    prompt, corrupt, absent = (
        np.concatenate([head, *told, name, context]) for name in (names[[asked]], names[[other]], unknown)
    )
    return prompt, corrupt, absent, asked, other
