"""Clean and corrupt prompts: they differ in one token, so that one question has one answer.

In a clean prompt the token A is at `changed`, B after it at `key`, and A again at `query`: an induction head looks
from `query` to `key`. The corrupt prompt has another token at `changed` and is the same everywhere else:

    clean     ... A B ...... A          query looks to key, because the token before the key is the query's token
    corrupt   ... C B ...... A          the same query, the same token at the key; only the token before it differs

Whatever part of the stripe is lost in the corrupt prompt was due to what other positions told the key about A.
Everything after `changed` may differ, through every head that looks there.

Where `X A B ... X A` repeats, two other changes ask whether a head compares more than one token:

    two_before_key    ... Y A B ...... X A      the match of A is untouched, that of X is not
    before_query      ... X A B ...... Y A
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from headscope.detectors.standard import earlier_copies
from headscope.errors import TokenError
from headscope.probes.copies import copies
from headscope.probes.probe import Probe, Tokens

ChangedToken = Literal["before_key", "two_before_key", "before_query"]
CONTEXT: tuple[ChangedToken, ...] = ("two_before_key", "before_query")
"""Changes that leave the token before the key alone."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CorruptPair:
    """One clean prompt, the corrupt one, and the question."""

    clean: Tokens
    """Token ids."""
    corrupt: Tokens
    """The same but for one."""
    query: int
    """Where A is again."""
    key: int
    """After its first place: where an induction head looks."""

    changed: int | None
    """The position whose token differs; None where the change that was asked for cannot be made in this prompt."""


def corrupt_pairs(probe: Probe, *, seed: int = 0, change: ChangedToken = "before_key") -> tuple[CorruptPair, ...]:
    """A pair for each prompt of a probe, at a query drawn from those whose token occurs exactly once before.

    Args:
        probe: Prompts that repeat tokens.
        seed: Of the query and of the new token. One seed gives the same queries for every change.
        change: Which token differs. The other two than `before_key` leave a prompt as it is where the tokens before
            the query and two before the key are not the same, or the latter is the prompt's first.

    Raises:
        TokenError: a prompt has no such query, or its tokens leave none to put in their place.
    """
    pool = np.unique(np.concatenate([*probe.prompts, *(probe.controls or ())]))
    made: list[CorruptPair] = []
    for index, prompt in enumerate(probe.prompts):
        query, copy = earlier_copies(prompt)
        once = np.flatnonzero(
            np.isin(query, copies(prompt).second) & (np.bincount(query)[query] == 1) & (copy > 0) & (copy + 1 < query)
        )
        others = np.setdiff1d(pool, prompt)
        if len(once) == 0 or len(others) == 0:
            raise TokenError(
                f"prompt {index} has no token that occurs once before its repeat, or no other token is left to put "
                "there; use repeated_tokens with two repeats."
            )
        random = np.random.default_rng([seed, index])
        chosen = once[int(random.integers(len(once)))]
        asked, before = int(query[chosen]), int(copy[chosen])
        changed = {"before_key": before, "two_before_key": before - 1, "before_query": asked - 1}[change]
        corrupt = prompt.copy()
        repeated = before > 1 and asked > before + 2 and prompt[before - 1] == prompt[asked - 1]
        if change == "before_key" or repeated:
            corrupt[changed] = others[int(random.integers(len(others)))]
        else:
            changed = None
        made.append(CorruptPair(clean=prompt, corrupt=corrupt, query=asked, key=before + 1, changed=changed))
    return tuple(made)
