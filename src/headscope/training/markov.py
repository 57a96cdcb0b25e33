"""Markov chains, each with a transition matrix of its own: what follows what must be learnt from the prompt itself.

    P[s] ~ Dirichlet(concentration, ..., concentration)       one row for each state s, drawn again for each prompt
    t_1 uniform over the states,   t_(i+1) ~ P[t_i]

A prompt's states are tokens drawn from the vocabulary without replacement; or all of them, as in the literature. The
best prediction counts what followed earlier copies of the present token, which is what an induction head reads; a model
that counts tokens alone does worse. Small concentrations give rows that are nearly certain.

Reference: Edelman, Edelman, Goel, Malach, Tsilivis 2024, arXiv:2402.11004, with concentration 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import ArgumentError
from headscope.training.loop import Batch, BatchSource


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chains:
    """A batch of chains and what drew them."""

    tokens: Int[Tensor, "batch query"]
    """Token ids; position 0 is BOS."""
    states: Int[Tensor, "batch state"]
    """The token of each state."""
    transitions: Float[Tensor, "batch state next_state"]
    """Probability of the next state; rows sum to 1."""


def markov_chains(
    *,
    n_prompts: int,
    n_tokens: int,
    n_states: int,
    vocab_size: int,
    bos_token_id: int,
    generator: torch.Generator,
    concentration: float = 1.0,
) -> Chains:
    """Draw chains, each from a matrix of its own.

    Args:
        n_prompts: Chains to draw.
        n_tokens: Tokens in each, BOS included.
        n_states: States of each chain.
        vocab_size: States are drawn from `0 .. vocab_size - 1` without `bos_token_id`.
        bos_token_id: The id at position 0.
        generator: The only source of randomness.
        concentration: Of the rows' Dirichlet distribution; 1 is uniform over all rows that there can be.

    Raises:
        ArgumentError: No states or too many, no token to predict, or a concentration that is not positive.
    """
    problems: list[str] = []
    if n_tokens < 3:
        problems.append(f"n_tokens={n_tokens} must be at least 3 to hold BOS and one transition")
    if not 2 <= n_states < vocab_size:
        problems.append(f"n_states={n_states} must be at least 2 and below vocab_size={vocab_size}")
    if not 0 <= bos_token_id < vocab_size:
        problems.append(f"bos_token_id={bos_token_id} must lie in 0 .. {vocab_size - 1}")
    if not concentration > 0:
        problems.append(f"concentration={concentration} must be positive")
    if problems:
        raise ArgumentError("markov_chains: " + "; ".join(problems) + ". Change these arguments.")
    # NumPy draws from Dirichlet distributions; its generator starts from torch's state.
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    transitions = rng.dirichlet(np.full(n_states, concentration), size=(n_prompts, n_states))
    others = np.delete(np.arange(vocab_size), bos_token_id)
    states = rng.permuted(np.tile(others, (n_prompts, 1)), axis=1)[:, :n_states]
    cumulative = transitions.cumsum(axis=-1)
    rows = np.arange(n_prompts)
    walk = np.empty((n_prompts, n_tokens - 1), dtype=np.int64)
    walk[:, 0] = rng.integers(n_states, size=n_prompts)
    for i, chance in enumerate(rng.random((n_tokens - 2, n_prompts, 1)), start=1):
        # Rounding may leave the last sum a little below 1.
        walk[:, i] = np.minimum((chance >= cumulative[rows, walk[:, i - 1]]).sum(axis=-1), n_states - 1)
    tokens = np.full((n_prompts, n_tokens), bos_token_id)
    tokens[:, 1:] = np.take_along_axis(states, walk, axis=1)
    return Chains(
        tokens=torch.from_numpy(tokens), states=torch.from_numpy(states), transitions=torch.from_numpy(transitions)
    )


def markov_source(
    *,
    vocab_size: int,
    bos_token_id: int,
    n_prompts: int,
    n_tokens: int,
    n_states: int,
    concentration: float = 1.0,
) -> BatchSource:
    """Batches of chains in which every next token counts.

    The args and the errors are those of `markov_chains`; errors appear when the first batch is drawn.
    """

    def draw(generator: torch.Generator) -> Batch:
        chains = markov_chains(
            n_prompts=n_prompts,
            n_tokens=n_tokens,
            n_states=n_states,
            vocab_size=vocab_size,
            bos_token_id=bos_token_id,
            generator=generator,
            concentration=concentration,
        )
        counted = torch.ones_like(chains.tokens, dtype=torch.bool)
        counted[:, -1] = False
        return Batch(tokens=chains.tokens, counted=counted)

    return draw
