"""Markov chains: drawn from the matrices that they come with, which are Dirichlet's, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest import approx

from headscope.errors import ArgumentError
from headscope.training.markov import markov_chains, markov_source

SHAPE = {"n_prompts": 3, "n_tokens": 4000, "n_states": 4, "vocab_size": 20, "bos_token_id": 5}


def chains(**changes):
    return markov_chains(**SHAPE | {"generator": torch.Generator().manual_seed(1)} | changes)


def counts(tokens, states):
    """How often each state followed each."""
    found = np.zeros((len(states), len(states)))
    place = {token: index for index, token in enumerate(states.tolist())}
    walk = [place[token] for token in tokens[1:].tolist()]
    np.add.at(found, (walk[:-1], walk[1:]), 1)
    return found


def test_each_state_is_followed_as_its_row_says():
    found = chains()
    for tokens, states, matrix in zip(found.tokens, found.states, found.transitions, strict=True):
        seen = counts(tokens, states)
        visits = seen.sum(axis=1, keepdims=True)
        assert visits.min() > 30
        # A frequency is off by sqrt(p (1 - p) / visits); 5 of these are seen once in a million.
        spread = np.sqrt(matrix.numpy() * (1 - matrix.numpy()) / visits)
        assert (np.abs(seen / visits - matrix.numpy()) <= 5 * spread + 1e-12).all()


def test_the_matrices_differ_between_prompts_and_their_rows_are_dirichlet():
    # Dirichlet(a, ..., a) over n: mean 1 / n, variance (1/n)(1 - 1/n) / (n a + 1).
    for a in (0.2, 1.0, 5.0):
        rows = chains(n_prompts=2000, n_tokens=3, concentration=a).transitions
        assert rows.sum(-1) == approx(np.ones((2000, 4)))
        assert float(rows.mean()) == approx(1 / 4)
        assert float(rows.var()) == approx(3 / 16 / (4 * a + 1), rel=0.03)
        assert not torch.equal(rows[0], rows[1])


def test_a_prompt_holds_bos_and_its_own_states():
    found = chains(n_prompts=50, n_tokens=300)
    assert (found.tokens[:, 0] == 5).all()
    for tokens, states in zip(found.tokens, found.states, strict=True):
        assert len(set(states.tolist())) == 4
        assert set(tokens[1:].tolist()) <= set(states.tolist())
        assert 5 not in states
    # Every other token of the vocabulary is a state of some prompt, and the first state is any of them.
    assert set(found.states.flatten().tolist()) == set(range(20)) - {5}


def test_the_first_state_is_uniform():
    found = chains(n_prompts=4000, n_tokens=3)
    first = (found.states == found.tokens[:, 1:2]).double().mean(dim=0)
    # 4000 draws of 1/4: a standard error of 0.007.
    assert first == approx(np.full(4, 0.25), abs=0.03)


def test_the_same_generator_gives_the_same_chains():
    first, again, other = (chains(generator=torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)


def test_a_batch_counts_every_next_token():
    source = markov_source(vocab_size=20, bos_token_id=0, n_prompts=2, n_tokens=5, n_states=3)
    batch = source(torch.Generator().manual_seed(0))
    assert batch.tokens.shape == (2, 5)
    assert batch.counted.tolist() == [[True, True, True, True, False]] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_states": 20}, "n_states=20 must be at least 2 and below vocab_size=20"),
        ({"n_states": 1}, "n_states=1 must be at least 2"),
        ({"n_tokens": 2}, "n_tokens=2 must be at least 3"),
        ({"concentration": 0.0}, r"concentration=0\.0 must be positive"),
        ({"bos_token_id": 20}, r"bos_token_id=20 must lie in 0 \.\. 19"),
    ],
)
def test_chains_that_cannot_be_are_refused(change, said):
    with pytest.raises(ArgumentError, match=said):
        chains(**change)
