"""Which tokens are predictable: by hand, against loops, and on the probes that repeat."""

from __future__ import annotations

import numpy as np
import pytest

import headscope as hs
from headscope.errors import TokenError
from headscope.planted.handbuilt import handbuilt
from headscope.probes.copies import check_repeats, copies

A, B, C, D, BOS = 1, 2, 3, 4, 0


def split(*tokens):
    found = copies(np.array(tokens))
    return found.first.tolist(), found.second.tolist()


def test_the_second_copy_but_its_last_token():
    # [BOS, r, r], r = ABC: query 4 is the second A, whose next token B followed the first A; so with 5, B then C.
    # Query 6 has no next token. Query 3 is the first C; that A follows, nothing predictable.
    assert split(BOS, A, B, C, A, B, C) == ([0, 1, 2, 3], [4, 5])


def test_without_a_start_token():
    assert split(A, B, C, A, B, C) == ([0, 1, 2], [3, 4])


def test_a_third_copy_is_foretold_from_its_first_token_on():
    # query 4, the second B, is followed by A as the first one was
    assert split(A, B, A, B, A, B) == ([0, 1], [2, 3, 4])


def test_nothing_repeated():
    assert split(A, B, C, D) == ([], [])


def test_a_token_that_comes_again_before_another_foretells_nothing():
    assert split(A, B, A, C) == ([], [])
    # the third A is followed by B, like the first one though not like the second
    assert split(A, B, A, C, A, B) == ([0, 1, 2, 3], [4])


def test_a_doubled_token():
    # the first A is followed by A; so is the second, where there is a third
    assert split(A, A) == ([], [])
    assert split(A, A, A) == ([0], [1])
    assert split(A, A, B, A, A) == ([0, 1, 2], [3])


def test_a_pair_at_the_end_counts_and_its_last_token_does_not():
    assert split(A, B, C, D, A, B) == ([0, 1, 2, 3], [4])
    assert split(A, B, C, D, A) == ([], [])


@pytest.mark.parametrize("tokens", [[], [A], [A, B]])
def test_prompts_too_short_to_repeat(tokens):
    found = copies(np.array(tokens, dtype=np.int64))
    assert (len(found.first), len(found.second)) == (0, 0)


def by_loops(tokens):
    """The definition, letter by letter."""
    n = len(tokens)
    second = [
        i for i in range(n - 1) if any(tokens[j] == tokens[i] and tokens[j + 1] == tokens[i + 1] for j in range(i))
    ]
    return (list(range(second[0])) if second else []), second


def test_equal_to_plain_loops(rng):
    for _ in range(300):
        tokens = rng.integers(0, rng.integers(1, 9), size=rng.integers(1, 30))
        before = tokens.copy()
        found = copies(tokens)
        assert (found.first.tolist(), found.second.tolist()) == by_loops(tokens.tolist())
        assert (tokens == before).all()


def test_a_repeated_probe_has_its_run_foretold_and_its_control_nothing():
    model = hs.load(handbuilt(vocab_size=128, n_positions=128).model)
    probe = hs.repeated_tokens(model, n_prompts=8, period=20)
    for prompt, control in zip(probe.prompts, probe.controls, strict=True):
        second = copies(prompt).second
        # period 15 to 25: all but the last token of the second copy, one stretch
        assert 14 <= len(second) <= 24
        assert (np.diff(second) == 1).all()
        assert len(copies(control).second) == 0
    assert [len(one.second) for one in check_repeats(probe.prompts)] == [len(copies(p).second) for p in probe.prompts]


def test_a_prompt_that_repeats_nothing_is_named():
    with pytest.raises(TokenError, match="prompt 1 repeats no pair of tokens.*use repeated_tokens"):
        check_repeats((np.array([A, B, A, B]), np.array([A, B, A, C])))
