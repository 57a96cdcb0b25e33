"""Jittered repeats: the targets are right, nothing else recurs, and position tells nothing."""

import pytest
import torch

from headscope.errors import ArgumentError
from headscope.training.repeats import jittered_repeats


def draw(seed: int = 0, **changes):
    arguments = {
        "n_prompts": 8,
        "n_tokens": 60,
        "vocab_size": 100,
        "bos_token_id": 7,
        "period": (3, 12),
        "gap": (0, 6),
    }
    return jittered_repeats(**arguments | changes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n_copies", [2, 3, 8])
def test_every_target_follows_the_most_recent_copy_of_the_query_token(n_copies: int):
    repeats = draw(n_copies=n_copies)
    n_checked = 0
    for tokens, keys in zip(repeats.tokens.tolist(), repeats.induction_key.tolist(), strict=True):
        for query, key in enumerate(keys):
            if key >= 0:
                assert key == max(j for j in range(query) if tokens[j] == tokens[query]) + 1
                assert tokens[key] == tokens[query + 1]
                n_checked += 1
    assert n_checked > 100


def test_with_two_copies_every_target_is_unique():
    for tokens, keys in zip(draw().tokens.tolist(), draw().induction_key.tolist(), strict=True):
        for query, key in enumerate(keys):
            assert tokens.count(tokens[query]) <= 2
            assert key < 0 or tokens[:query].count(tokens[query]) == 1


def test_the_start_token_comes_first_and_never_again():
    tokens = draw(bos_token_id=7).tokens
    assert (tokens[:, 0] == 7).all()
    assert not (tokens[:, 1:] == 7).any()
    assert tokens.min() >= 0
    assert tokens.max() < 100


def test_distances_vary_so_that_no_fixed_offset_serves():
    repeats = draw(n_prompts=200)
    _, query = repeats.predictable.nonzero(as_tuple=True)
    distances = query - repeats.induction_key[repeats.predictable]
    # Periods 3 .. 12 and gaps 0 .. 6 allow the distances 2 .. 17.
    assert set(distances.tolist()) == set(range(2, 18))
    assert distances.bincount().max() < 0.2 * len(distances)


def test_a_fixed_period_without_gaps_is_the_plain_repeat():
    # [BOS, r, r], period 5: queries 6 .. 9 look at q - 4; what would follow token 10 is not in the prompt.
    repeats = draw(n_prompts=1, n_tokens=11, period=(5, 5), gap=(0, 0))
    assert repeats.tokens[0, 1:6].tolist() == repeats.tokens[0, 6:].tolist()
    assert repeats.induction_key[0].tolist() == [-1] * 6 + [2, 3, 4, 5, -1]


def test_the_smallest_legal_prompt():
    repeats = draw(n_prompts=1, n_tokens=7, period=(3, 3), gap=(0, 0))
    assert repeats.induction_key[0].tolist() == [-1, -1, -1, -1, 2, 3, -1]


def test_the_same_seed_gives_the_same_prompts_and_another_seed_others():
    assert torch.equal(draw(seed=1).tokens, draw(seed=1).tokens)
    assert not torch.equal(draw(seed=1).tokens, draw(seed=2).tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"period": (2, 5)}, r"period=\(2, 5\) must be .* 3 <= least"),
        ({"period": (6, 5)}, r"period=\(6, 5\)"),
        ({"gap": (3, 1)}, r"gap=\(3, 1\)"),
        ({"n_copies": 1}, "n_copies=1 must be at least 2"),
        ({"n_tokens": 6}, "n_tokens=6 must be at least 7"),
        ({"vocab_size": 59}, "vocab_size=59 must be at least n_tokens=60"),
        ({"bos_token_id": 100}, r"bos_token_id=100 must lie in 0 \.\. 99"),
    ],
)
def test_impossible_requests_are_refused(changes: dict, message: str):
    with pytest.raises(ArgumentError, match=message):
        draw(**changes)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ArgumentError, match=r"period=.*gap=.*vocab_size="):
        draw(period=(1, 5), gap=(2, 1), vocab_size=5)
