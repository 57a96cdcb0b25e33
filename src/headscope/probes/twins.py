"""Twins: prompts that differ in one token, so that one question has one answer.

In a clean prompt the token A stands at `changed`, B after it at `key`, and A again at `query`: an induction head looks
from `query` to `key`. Its corrupt twin has another token at `changed` and is the same everywhere else:

    clean     ... A B ...... A          query looks to key, since what stood before the key is what stands here
    corrupt   ... C B ...... A          the same query, the same token at the key; only what stood before it differs

Whatever part of the stripe is gone in the twin was due to what other positions told the key about A. Everything that
follows `changed` may differ, through every head that looks there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headscope.detectors.standard import earlier_copies
from headscope.errors import TokenError
from headscope.probes.copies import copies
from headscope.probes.probe import Probe, Tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Twin:
    """One clean prompt, its corrupt twin, and the question."""

    clean: Tokens
    """Token ids."""
    corrupt: Tokens
    """The same but for one."""
    query: int
    """Where A stands again."""
    key: int
    """After its first place: where an induction head looks."""

    @property
    def changed(self) -> int:
        """The position whose token differs: before the key."""
        return self.key - 1


def twins(probe: Probe, *, seed: int = 0) -> tuple[Twin, ...]:
    """A twin for each prompt of a probe, at a query drawn from those whose token stood exactly once before.

    Raises:
        TokenError: a prompt has no such query, or its tokens leave none to put in their place.
    """
    pool = np.unique(np.concatenate([*probe.prompts, *(probe.controls or ())]))
    made = []
    for index, prompt in enumerate(probe.prompts):
        query, copy = earlier_copies(prompt)
        once = np.flatnonzero(
            np.isin(query, copies(prompt).second) & (np.bincount(query)[query] == 1) & (copy > 0) & (copy + 1 < query)
        )
        others = np.setdiff1d(pool, prompt)
        if len(once) == 0 or len(others) == 0:
            raise TokenError(
                f"prompt {index} has no token that stands once before its repeat, or no other token is left to put "
                "there; use repeated_tokens with two repeats."
            )
        random = np.random.default_rng([seed, index])
        chosen = once[int(random.integers(len(once)))]
        corrupt = prompt.copy()
        corrupt[copy[chosen]] = others[int(random.integers(len(others)))]
        made.append(Twin(clean=prompt, corrupt=corrupt, query=int(query[chosen]), key=int(copy[chosen]) + 1))
    return tuple(made)
