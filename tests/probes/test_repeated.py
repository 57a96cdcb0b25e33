"""Repeated random tokens: their parts, recovered from the tokens alone, and their control."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope import repeated_tokens
from headscope.errors import ArgumentError, ShapeError, TokenError
from headscope.probes import repeated
from headscope.probes.repeated import random_tokens

BOS = 127


@pytest.fixture(scope="module")
def model():
    """128 ids, of which 126 and 127 are special; 127 starts a prompt; 128 positions; no tokenizer."""
    gpt2 = tiny_causal_lm("gpt2")
    gpt2.config.eos_token_id = 126
    return hs.load(gpt2)


class Parts(NamedTuple):
    prefix: int
    run: int
    gaps: tuple[int, ...]
    tail: int
    copies: tuple[int, ...]
    """Where each copy of the run begins."""


def parts(tokens: np.ndarray, *, n_repeats: int = 2, start: int | None = BOS) -> Parts:
    """Take a prompt apart: the run's tokens are those that occur `n_repeats` times, all others occur once."""
    counts = Counter(tokens.tolist())
    assert set(counts.values()) == {1, n_repeats}
    begin = 0
    if start is not None:
        assert tokens[0] == start
        assert counts[start] == 1
        begin = 1
    places = [index for index, token in enumerate(tokens.tolist()) if counts[token] == n_repeats]
    run, rest = divmod(len(places), n_repeats)
    assert rest == 0
    copies = [places[index * run] for index in range(n_repeats)]
    for copy in copies:
        assert tokens[copy : copy + run].tolist() == tokens[copies[0] : copies[0] + run].tolist()
    gaps = tuple(later - (earlier + run) for earlier, later in pairwise(copies))
    assert min(gaps) >= 0
    return Parts(copies[0] - begin, run, gaps, len(tokens) - copies[-1] - run, tuple(copies))


@pytest.mark.parametrize("n_repeats", [2, 3, 4])
def test_a_prompt_is_start_prefix_run_gap_run_tail(model, n_repeats):
    # period 8: prefix and gaps 0 .. 2, run 6 .. 10. Length 1 + 2 + 10 n + 2 (n - 1) = 12 n + 1.
    probe = repeated_tokens(model, n_prompts=40, period=8, n_repeats=n_repeats)
    for prompt in probe.prompts:
        assert len(prompt) == 12 * n_repeats + 1
        found = parts(prompt, n_repeats=n_repeats)
        assert 0 <= found.prefix <= 2
        assert 6 <= found.run <= 10
        assert max(found.gaps) <= 2


@given(
    n_prompts=st.integers(1, 4),
    period=st.integers(3, 30),
    n_repeats=st.integers(2, 4),
    jitter=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_legal_probe_has_its_parts_and_its_control_none(model, n_prompts, period, n_repeats, jitter, seed):
    given = {"n_prompts": n_prompts, "period": period, "n_repeats": n_repeats, "jitter": jitter, "seed": seed}
    try:
        probe = repeated_tokens(model, **given)
    except ShapeError:
        # 128 positions and 126 ids: too long a prompt, or too few ids to fill one and its control.
        assert period * n_repeats > 60
        return
    assert len(probe.prompts) == len(probe.controls) == n_prompts
    assert len({len(tokens) for tokens in (*probe.prompts, *probe.controls)}) == 1
    for prompt, control in zip(probe.prompts, probe.controls, strict=True):
        found = parts(prompt, n_repeats=n_repeats)
        assert 3 <= found.run <= period + max(1, round(period / 4)) if jitter else found.run == period
        assert len(set(control.tolist())) == len(control), "a token recurs in the control"
        until = found.copies[0] + found.run
        assert control[:until].tolist() == prompt[:until].tolist()


def test_jitter_varies_prefix_gap_and_period_and_not_together(model):
    found = [parts(prompt) for prompt in repeated_tokens(model, n_prompts=300, period=8).prompts]
    assert {one.prefix for one in found} == {0, 1, 2}
    assert {one.gaps[0] for one in found} == {0, 1, 2}
    assert {one.run for one in found} == {6, 7, 8, 9, 10}
    # All 3 * 3 * 5 combinations: none of the three can be told from the others.
    assert len({(one.prefix, one.gaps, one.run) for one in found}) == 45
    # The documented mean. SD of a uniform draw from 5 is 1.41, of the mean of 300 0.08.
    assert np.mean([one.run for one in found]) == pytest.approx(8, abs=0.3)
    # What a positional head would have to guess: the distance from a query to its key, run + gap - 1.
    distances = Counter(one.run + one.gaps[0] - 1 for one in found)
    assert max(distances.values()) / 300 < 0.3


def test_the_gaps_of_one_prompt_differ_too(model):
    probe = repeated_tokens(model, n_prompts=60, period=8, n_repeats=3)
    found = [parts(prompt, n_repeats=3) for prompt in probe.prompts]
    assert len({one.gaps for one in found}) == 9


@pytest.mark.parametrize("period", [3, 4, 20])
def test_the_classic_probe_is_start_run_run(model, period):
    probe = repeated_tokens(model, n_prompts=5, period=period, jitter=False)
    for prompt in probe.prompts:
        assert len(prompt) == 2 * period + 1
        assert parts(prompt) == Parts(0, period, (0,), 0, (1, 1 + period))
    assert probe.settings["length"] == 2 * period + 1
    classic_thrice = repeated_tokens(model, n_prompts=1, period=period, n_repeats=3, jitter=False)
    assert parts(classic_thrice.prompts[0], n_repeats=3).copies == (1, 1 + period, 1 + 2 * period)


def test_the_control_differs_in_the_later_copies_alone_and_nothing_in_it_repeats(model):
    for n_repeats in (2, 3):
        probe = repeated_tokens(model, n_prompts=40, period=8, n_repeats=n_repeats)
        assert probe.controls is not None
        for prompt, control in zip(probe.prompts, probe.controls, strict=True):
            found = parts(prompt, n_repeats=n_repeats)
            later = np.zeros(len(prompt), dtype=bool)
            for copy in found.copies[1:]:
                later[copy : copy + found.run] = True
            assert (prompt == control).tolist() == (~later).tolist()
            assert max(Counter(control.tolist()).values()) == 1
    # Prompt and control are both read: 40 * (12 * 3 + 1) * 2.
    assert probe.n_tokens == 2960


def test_even_in_the_smallest_pool_no_token_of_the_run_recurs_in_the_control(model):
    # period 8: a run of up to 10 and as many others. The control wants up to 24 - 6 = 18 of 10: they must repeat.
    probe = repeated_tokens(model, n_prompts=40, period=8, token_ids=range(20, 40))
    assert probe.controls is not None
    for prompt, control in zip(probe.prompts, probe.controls, strict=True):
        differ = np.flatnonzero(prompt != control)
        run = set(prompt[differ].tolist())
        assert len(run) == len(differ)
        assert all(control.tolist().count(token) == 1 for token in run)
        assert all(prompt.tolist().count(token) == 2 for token in run)


@pytest.mark.parametrize("jitter", [True, False])
def test_special_tokens_occur_nowhere_but_at_the_start(model, jitter):
    probe = repeated_tokens(model, n_prompts=100, period=10, jitter=jitter)
    assert probe.controls is not None
    drawn = np.concatenate([prompt[1:] for prompt in (*probe.prompts, *probe.controls)])
    # Every id but 126 and 127, and each of them: 100 prompts of 20 or more draws from 126.
    assert set(drawn.tolist()) == set(range(126))
    assert probe.settings["n_token_ids"] == 126


def test_a_pool_of_ones_own_is_kept_to_without_its_special_tokens(model):
    pool = [*range(30, 50), 126, 127, 30]
    probe = repeated_tokens(model, n_prompts=20, period=6, token_ids=pool)
    assert probe.controls is not None
    drawn = np.concatenate([prompt[1:] for prompt in (*probe.prompts, *probe.controls)])
    assert set(drawn.tolist()) == set(range(30, 50))
    assert probe.settings["n_token_ids"] == 20


# ---- start token and vocabulary


class FakeTokenizer:
    """What a probe asks a tokenizer; it can neither encode nor decode."""

    def __init__(self, n: int, bos_token_id: int | None, all_special_ids: list[int]) -> None:
        self.n, self.bos_token_id, self.all_special_ids = n, bos_token_id, all_special_ids

    def __len__(self) -> int:
        return self.n


@pytest.mark.parametrize(
    ("tokenizer", "start"),
    [
        (None, BOS),
        (FakeTokenizer(128, 3, [3]), 3),
        (FakeTokenizer(128, None, []), None),
        # A start token that the embedding has no row for cannot be read.
        (FakeTokenizer(128, 500, [500]), None),
    ],
    ids=["config", "tokenizer", "none", "outside"],
)
def test_a_prompt_starts_with_the_tokenizers_start_token_or_else_the_configs(model, tokenizer, start):
    loaded = hs.load(model.hf, tokenizer=tokenizer)
    probe = repeated_tokens(loaded, n_prompts=3, period=5)
    for prompt in probe.prompts:
        parts(prompt, start=start)
    assert probe.settings["bos"] is (start is not None)
    # 1 + 1 + 2 * 6 + 1 tokens, less the start token.
    assert len(probe.prompts[0]) == (15 if start is not None else 14)


def test_the_start_token_can_be_left_out_and_insisted_on(model):
    assert not any(BOS in prompt for prompt in repeated_tokens(model, n_prompts=3, period=5, bos=False).prompts)
    assert all(prompt[0] == BOS for prompt in repeated_tokens(model, n_prompts=3, period=5, bos=True).prompts)
    without = hs.load(model.hf, tokenizer=FakeTokenizer(128, None, []))
    with pytest.raises(TokenError, match="bos=True, but .* has no start token; use bos='auto' or bos=False"):
        repeated_tokens(without, bos=True)


def test_rows_of_the_embedding_beyond_the_tokenizers_ids_are_not_drawn(model):
    # Embeddings are often padded to a round number: rows 60 .. 127 stand for no token.
    loaded = hs.load(model.hf, tokenizer=FakeTokenizer(60, 0, [0, 1]))
    probe = repeated_tokens(loaded, n_prompts=50, period=10)
    drawn = np.concatenate([prompt[1:] for prompt in probe.prompts])
    assert set(drawn.tolist()) == set(range(2, 60))
    assert probe.settings["n_token_ids"] == 58


# ---- seeds and further draws


def same(a, b) -> bool:
    rows = [(*one.prompts, *one.controls) for one in (a, b)]
    return len(rows[0]) == len(rows[1]) and all(np.array_equal(x, y) for x, y in zip(*rows, strict=True))


def test_the_seed_decides_the_probe(model):
    def made(seed):
        return repeated_tokens(model, n_prompts=4, period=8, seed=seed)

    assert same(made(0), made(0))
    assert not same(made(0), made(1))
    assert same(repeated_tokens(model, n_prompts=4, period=8), made(0))
    first, second = ([prompt.tolist() for prompt in made(seed).prompts] for seed in (0, 1))
    assert not any(prompt in second for prompt in first)


def test_the_draw_leaves_the_global_seeds_alone(model):
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    repeated_tokens(model, n_prompts=2, period=8)
    assert np.random.get_state()[1].tolist() == before


def test_prompts_of_one_probe_differ(model):
    prompts = {tuple(prompt.tolist()) for prompt in repeated_tokens(model, n_prompts=64, period=8).prompts}
    assert len(prompts) == 64


def test_more_draws_what_a_longer_probe_would_have_held(model):
    probe = repeated_tokens(model, n_prompts=4, period=8)
    more = probe.more(3)
    assert same(more, probe.more(3)), "drawing must not change the probe"
    longer = repeated_tokens(model, n_prompts=9, period=8)
    wanted = [*probe.prompts, *more.prompts, *more.more(2).prompts]
    assert [prompt.tolist() for prompt in wanted] == [prompt.tolist() for prompt in longer.prompts]
    assert len(more.controls) == 3
    assert len({tuple(prompt.tolist()) for prompt in wanted}) == 9


def test_settings_say_how_it_was_made(model):
    assert repeated_tokens(model, n_prompts=4, period=8, seed=7).settings == {
        "kind": "repeated_tokens",
        "n_prompts": 4,
        "period": 8,
        "n_repeats": 2,
        "jitter": True,
        "bos": True,
        "n_token_ids": 126,
        "seed": 7,
        "length": 25,
    }


# ---- the smallest sizes and errors


def test_the_smallest_legal_probe(model):
    # period 3: run 3 or 4, never 2, prefix and gap 0 or 1. Length 1 + 1 + 2 * 4 + 1 = 11.
    probe = repeated_tokens(model, n_prompts=100, period=3)
    assert {parts(prompt).run for prompt in probe.prompts} == {3, 4}
    assert {len(prompt) for prompt in probe.prompts} == {11}
    assert len(repeated_tokens(model, n_prompts=1, period=3).prompts) == 1


@pytest.mark.parametrize("period", [2, 1, 0, -5])
@pytest.mark.parametrize("jitter", [True, False])
def test_a_period_below_three_is_refused(model, period, jitter):
    with pytest.raises(ShapeError, match=f"period={period}; it needs at least 3, since at 2 the induction stripe is"):
        repeated_tokens(model, period=period, jitter=jitter)


def test_counts_that_are_too_small_are_refused(model):
    with pytest.raises(ArgumentError, match="n_prompts=0; it needs at least 1, and 2 for an interval"):
        repeated_tokens(model, n_prompts=0)
    with pytest.raises(ArgumentError, match="n_repeats=1; a repeated probe needs at least 2 copies"):
        repeated_tokens(model, n_repeats=1)
    with pytest.raises(ArgumentError, match="seed=-1; it needs a whole number from 0 up"):
        repeated_tokens(model, seed=-1)


@pytest.mark.parametrize(
    "draw", [repeated_tokens, lambda model, n_prompts: random_tokens(model, n_prompts=n_prompts, length=9)]
)
def test_more_prompts_than_memory_holds_are_refused_before_one_is_drawn(draw, model, monkeypatch):
    monkeypatch.setattr(repeated, "_different", lambda *given: pytest.fail("a prompt was drawn"))
    with pytest.raises(ArgumentError, match=r"n_prompts=10{24} of \d+ tokens need [\d,.]+ GB, but [\d,.]+ GB are free"):
        draw(model, n_prompts=10**24)


def test_a_prompt_longer_than_the_context_is_refused_and_the_limit_named(model):
    # 1 + 2 * 63 = 127 fit into 128 positions, 1 + 2 * 64 = 129 do not.
    pool = range(126)
    assert len(repeated_tokens(model, n_prompts=1, period=63, jitter=False, token_ids=pool).prompts[0]) == 127
    message = "period=64 and n_repeats=2 give prompts of 129 tokens, but .* reads at most 128"
    with pytest.raises(ShapeError, match=message):
        repeated_tokens(model, period=64, jitter=False)
    # With jitter the longest counts: 1 + 12 + 2 * 62 + 12 = 149.
    with pytest.raises(ShapeError, match="give prompts of 149 tokens"):
        repeated_tokens(model, period=50)


def test_a_model_that_states_no_limit_takes_any_length():
    bloom = hs.load(tiny_causal_lm("bloom"))
    assert bloom.max_tokens is None
    assert len(repeated_tokens(bloom, n_prompts=1, period=60, jitter=False).prompts[0]) == 121


def test_a_pool_that_is_too_small_is_refused(model):
    # period 8 has runs of up to 10: 20 different ids, since the control needs as many again.
    assert repeated_tokens(model, n_prompts=1, period=8, token_ids=range(20)).n_tokens == 50
    with pytest.raises(ShapeError, match="19 different tokens are too few for a period of 10: .* need 20"):
        repeated_tokens(model, period=8, token_ids=range(19))
    # Doubles and special tokens do not count.
    with pytest.raises(ShapeError, match="19 different tokens are too few"):
        repeated_tokens(model, period=8, token_ids=[*range(19), 5, 127])
    with pytest.raises(ShapeError, match="0 different tokens"):
        repeated_tokens(model, period=8, token_ids=[])


@pytest.mark.parametrize(("token_ids", "bad"), [([5, 128], 128), ([-1, 5], -1)])
def test_ids_outside_the_vocabulary_are_refused(model, token_ids, bad):
    with pytest.raises(TokenError, match=f"token id {bad} of token_ids is outside the vocabulary .* from 0 to 127"):
        repeated_tokens(model, period=3, token_ids=token_ids)


def test_ids_that_are_no_whole_numbers_are_refused():
    from headscope.probes.repeated import _pool

    # Without the shape checks of these tests, which refuse floats before the function runs.
    unchecked = _pool.__wrapped__
    with pytest.raises(TokenError, match="token_ids holds something else than whole numbers"):
        unchecked(SimpleNamespace(special_token_ids=frozenset(), n_embeddings=10, id="m"), [1.5, 2.5])


@pytest.mark.parametrize("roles", [["retrieval"], None], ids=["asked", "beside others"])
def test_a_vocabulary_of_special_tokens_alone_is_told(roles):
    llama = tiny_causal_lm("llama")
    llama.resize_token_embeddings(2)
    llama.config.bos_token_id, llama.config.eos_token_id = 0, 1
    with pytest.raises(TokenError, match="has only special tokens"):
        random_tokens(hs.load(llama), n_prompts=1, length=5)
    with pytest.raises(ArgumentError, match="no role can be asked of .*has only special tokens"):
        hs.atlas(llama, roles=roles, quick=True, n_prompts=4)
