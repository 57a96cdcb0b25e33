"""Twins: by hand, on every kind of repeated probe, and of prompts that have none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import TokenError
from headscope.probes.corrupt import corrupt_pairs
from headscope.probes.probe import Probe

BOS, A, B, C, D, E = range(6)


def probe_of(*prompts, controls=None):
    arrays = tuple(np.array(prompt) for prompt in prompts)
    return Probe(prompts=arrays, controls=None if controls is None else (np.array(controls),), settings={})


def drawn(probe, n_seeds=60):
    """What prompt 0 gives over many seeds: how often each (query, key), and each token put in its place."""
    made = [corrupt_pairs(probe, seed=seed)[0] for seed in range(n_seeds)]
    return Counter((one.query, one.key) for one in made), Counter(int(one.corrupt[one.changed]) for one in made)


def assert_is_twin(twin, prompt):
    """What the module says of a twin, letter by letter."""
    assert (twin.clean == prompt).all()
    assert np.flatnonzero(twin.clean != twin.corrupt).tolist() == [twin.changed]
    assert 0 < twin.changed == twin.key - 1
    assert twin.key < twin.query < len(prompt) - 1
    token = prompt[twin.query]
    # A stands at `changed` and at `query`, and nowhere else before; what followed it then follows it again
    assert np.flatnonzero(prompt[: twin.query + 1] == token).tolist() == [twin.changed, twin.query]
    assert prompt[twin.query + 1] == prompt[twin.key]
    # what took its place stands nowhere: the twin has no other match instead
    assert twin.corrupt[twin.changed] not in prompt


# ---- by hand


def test_a_repeat_of_three():
    # BOS A B C A B C: query 4 (A) looks to key 2, query 5 (B) to key 3. Query 6 has no next token.
    probe = probe_of([BOS, A, B, C, A, B, C], controls=[BOS, D, E, D, E, D, E])
    places, instead = drawn(probe)
    assert set(places) == {(4, 2), (5, 3)}
    assert min(places.values()) > 15  # 60 draws of two, evenly
    # of the other tokens of the probe: D or E; BOS, A, B and C stand in the prompt
    assert set(instead) == {D, E}
    assert min(instead.values()) > 15
    assert_is_twin(corrupt_pairs(probe)[0], probe.prompts[0])


def test_tokens_may_come_from_other_prompts():
    probe = probe_of([BOS, A, B, C, A, B, C], [BOS, D, E, D, E, D])
    assert set(drawn(probe)[1]) == {D, E}


def test_the_first_position_is_left_alone():
    # A B C A B C: the first A stands at position 0, where models rest; only B is asked
    assert set(drawn(probe_of([A, B, C, A, B, C], controls=[D] * 6))[0]) == {(4, 2)}


def test_in_a_third_copy_a_token_has_two_earlier_ones():
    # BOS A B A B A B: query 3 is the first second copy of A, query 4 of B; queries 5 has two.
    # (query 4, the second B, is followed by A as the first one was.)
    assert set(drawn(probe_of([BOS, A, B, A, B, A, B], controls=[D] * 7))[0]) == {(3, 2), (4, 3)}


def test_a_doubled_token_is_not_asked():
    # BOS A A A: from query 2 the token after the earlier A is the query itself. B C B C is what is left.
    assert set(drawn(probe_of([BOS, A, A, A, B, C, B, C], controls=[D] * 8))[0]) == {(6, 5)}


# ---- on probes


@pytest.fixture(scope="module")
def model():
    return hs.load(tiny_causal_lm("llama"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jitter": False},
        {"bos": False},
        {"n_repeats": 3},
        {"period": 3},
        {"period": 20, "token_ids": list(range(10, 80))},
    ],
    ids=str,
)
def test_every_prompt_has_a_twin(options, model):
    probe = hs.repeated_tokens(model, **({"n_prompts": 30, "period": 8} | options))
    before = [prompt.copy() for prompt in probe.prompts]
    made = corrupt_pairs(probe, seed=3)
    assert len(made) == 30
    for twin, prompt in zip(made, before, strict=True):
        assert_is_twin(twin, prompt)
    assert all((a == b).all() for a, b in zip(probe.prompts, before, strict=True))
    assert len({(twin.query, twin.key) for twin in made}) > 3  # places vary from prompt to prompt


def test_the_twin_s_key_is_after_no_earlier_copy(model):
    # In the twin the query's token stands nowhere before it: an induction head has nowhere to look.
    for twin in corrupt_pairs(hs.repeated_tokens(model, n_prompts=20, period=8)):
        assert twin.clean[twin.query] not in twin.corrupt[: twin.query]


def test_the_same_seed_gives_the_same_twins(model):
    probe = hs.repeated_tokens(model, n_prompts=12, period=8)

    def as_lists(seed):
        return [(one.query, one.key, one.corrupt.tolist()) for one in corrupt_pairs(probe, seed=seed)]

    assert as_lists(5) == as_lists(5)
    assert sum(a == b for a, b in zip(as_lists(5), as_lists(6), strict=True)) < 3


# ---- none


@pytest.mark.parametrize(
    "prompt",
    [
        [BOS, A, B, C, D, E],  # nothing repeats
        [BOS, A, B, A],  # the repeat has no next token
        [BOS, A, B, A, C],  # and here another one
        [A, B, C, A, B],  # the first A stands at position 0, and the second B is the last token
        [BOS, A, A, A],  # the key is the query
    ],
    ids=str,
)
def test_a_prompt_without_a_place_is_named(prompt):
    good = [BOS, A, B, C, A, B, C]
    with pytest.raises(
        TokenError, match="prompt 1 has no token that occurs once before its repeat.*repeated_tokens"
    ) as e:
        corrupt_pairs(probe_of(good, prompt, [BOS, D, E, D, E]))
    assert "\n" not in str(e.value)


def test_no_token_is_left_to_put_there():
    with pytest.raises(TokenError, match="prompt 0 has .* or no other token is left"):
        corrupt_pairs(probe_of([BOS, A, B, C, A, B, C]))
