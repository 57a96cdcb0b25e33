"""Which tokens of a prompt its own past predicts.

A query i is `predictable` when an earlier copy of its token was followed by the token that follows i:

    predictable(i)  <=>  there is j < i with t_j = t_i and t_(j+1) = t_(i+1)

In `[BOS, r, r]` these are the tokens of the second copy but its last; its first is never predictable: the
token before it is new. Queries before the first predictable one read tokens that nothing repeats: the first copy and
what is around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from headscope.detectors.standard import earlier_copies
from headscope.errors import TokenError
from headscope.probes.probe import Tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Copies:
    """Queries of one prompt; the loss at query i is that of the token at i + 1."""

    first: Int[np.ndarray, " early_query"]
    """Before anything is predictable."""
    second: Int[np.ndarray, " late_query"]
    """Predictable."""


def copies(tokens: Tokens) -> Copies:
    """Split one prompt's queries. Both are empty where nothing is predictable."""
    query, copy = earlier_copies(tokens)
    last = len(tokens) - 1
    known = query < last
    query, copy = query[known], copy[known]
    second = np.unique(query[tokens[copy + 1] == tokens[query + 1]])
    return Copies(first=np.arange(second[0] if len(second) else 0), second=second)


def check_repeats(prompts: tuple[Tokens, ...]) -> list[Copies]:
    """Split the queries of every prompt, or say which prompt has no second copy.

    Raises:
        TokenError: a prompt in which nothing repeats, so that it has no second copy.
    """
    split = [copies(prompt) for prompt in prompts]
    for index, found in enumerate(split):
        if len(found.second) == 0:
            raise TokenError(
                f"prompt {index} repeats no pair of tokens, so it has no second copy whose loss could change; "
                "use repeated_tokens, or prompts that repeat themselves."
            )
    return split
