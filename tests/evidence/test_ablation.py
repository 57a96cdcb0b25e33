"""Ablation: against edits made in each family's own code, on heads that we know, in any batch, and of bad input."""

from __future__ import annotations

import functools
import json
from contextlib import contextmanager

import jaxtyping
import numpy as np
import pytest
import torch
from pytest import approx
from transformers import GPT2Model

import headscope as hs
from benchmarks.tiny import tiny_causal_lm, tiny_config
from headscope.errors import (
    ArgumentError,
    MemoryRanOut,
    NonFiniteError,
    ShapeError,
    TokenError,
    UnsupportedModel,
)
from headscope.interventions import ablation as worlds
from headscope.interventions.ablation import METHODS, Ablator, _together, losses
from headscope.model.replay import Replay
from headscope.planted.handbuilt import handbuilt
from headscope.probes.copies import copies
from headscope.records.common import Estimate
from tests.running import forward

PROJECTION = {
    # family: the output projection, whose input is every head's z side by side
    "llama": "model.layers.{}.self_attn.o_proj",  # 4 query heads share 2 KV heads
    "deepseek_v3": "model.layers.{}.self_attn.o_proj",  # latent attention: values narrower than keys
    "mistral": "model.layers.{}.self_attn.o_proj",  # window of 8
    "gemma2": "model.layers.{}.self_attn.o_proj",  # soft-cap, windows in turn
    "gpt_oss": "model.layers.{}.self_attn.o_proj",  # sinks
    "gpt2": "transformer.h.{}.attn.c_proj",  # fused, weights the other way round
    "gemma3n_text": "model.layers.{}.self_attn.o_proj",  # cannot be restarted
    "gptj": "transformer.h.{}.attn.out_proj",  # runs in its own code
    "bloom": "transformer.h.{}.self_attention.dense",  # likewise
}
N_HEADS = 4
HEADS = [hs.HeadId(0, 1), hs.HeadId(1, 0), hs.HeadId(1, 2)]
N_PROMPTS, N_TOKENS = 3, 20
N_CORPUS, N_CORPUS_TOKENS = 5, 23
SEED = 4


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def loaded(family):
    return hs.load(tiny_causal_lm(family))


def rows(n_prompts, n_tokens, seed=0):
    return np.random.default_rng(seed).integers(3, 100, (n_prompts, n_tokens))


@pytest.fixture(scope="module")
def probe():
    return hs.probe_tokens(rows(N_PROMPTS, N_TOKENS))


def test_a_corpus_is_what_a_probe_is_and_the_loss_says_where_it_is():
    # Six tokens that never meet twice: no pair repeats, so that the loss is that of all tokens.
    model, ids = loaded("llama"), torch.arange(3, 9)[None].repeat(4, 1) + torch.arange(4)[:, None]
    given = [ids.tolist(), ids, hs.probe_tokens(ids)]
    found = [hs.ablate(model, "L0H0", probe=rows(1, 6)[:, :6], corpus=one) for one in given]
    assert found[0].delta_loss_nats == found[1].delta_loss_nats == found[2].delta_loss_nats
    assert "nats on all tokens, mean)" in repr(found[0])
    searched = [
        hs.ablate_each(model, probe=hs.repeated_tokens(model, n_prompts=4, period=3), corpus=one)
        for one in (torch.cat([ids, ids], 1), hs.probe_tokens(torch.cat([ids, ids], 1)))
    ]
    assert searched[0].heads == searched[1].heads


def test_means_keep_the_width_of_the_model():
    # z = 1, 1 + 2^-40 and so on: float32 keeps 2^-23 beside 1
    model = hs.load(tiny_causal_lm("llama").double())
    ids = hs.probe_tokens(rows(2, 8))
    clean = hs.probe_tokens(rows(3, 8, seed=1))
    ablator = Ablator.of(model, ids, method="mean", corpus=clean)
    kept = {}
    forward(
        model.hf,
        model.check.route,
        torch.from_numpy(np.stack(clean.prompts)),
        lambda seen: kept.update({(seen.layer, seen.call): seen.z.mean(0)}),
    )
    for at, mean in ablator._mean_z().items():
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, kept[at], atol=1e-14, rtol=1e-12)


@pytest.fixture(scope="module")
def corpus():
    return hs.probe_tokens(rows(N_CORPUS, N_CORPUS_TOKENS, seed=1))


# ---- the reference: the family's own eager code, hooks on its output projections


@contextmanager
def hooks(family, act):
    """`act(layer, z)` on the input of each layer's output projection; what it returns is put there."""
    hf = loaded(family).hf
    layers = range(hf.config.get_text_config().num_hidden_layers)
    handles = [
        hf.get_submodule(PROJECTION[family].format(layer)).register_forward_pre_hook(
            lambda module, inputs, layer=layer: None if (new := act(layer, inputs[0])) is None else (new, *inputs[1:])
        )
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def own_logits(family, tokens):
    hf = loaded(family).hf
    assert hf.config._attn_implementation == "eager"
    return hf(input_ids=torch.from_numpy(tokens), use_cache=False).logits


def own_z(family, tokens):
    """Each layer's z [prompt position head * d_head] in a clean pass."""
    found = {}
    with hooks(family, lambda layer, z: found.update({layer: z.clone()})):
        own_logits(family, tokens)
    return found


def substitutes(family, method, corpus):
    """What takes z's place, by layer: [prompt or 1, position, head * d_head]."""
    seen = own_z(family, np.stack(corpus.prompts))
    if method == "zero":
        return {layer: torch.zeros_like(z[:1, :N_TOKENS]) for layer, z in seen.items()}
    if method == "mean":
        return {layer: sum(z[:, :N_TOKENS]) / N_CORPUS for layer, z in seen.items()}
    drawn = [int(np.random.default_rng([SEED, prompt]).integers(N_CORPUS)) for prompt in range(N_PROMPTS)]
    assert len(set(drawn)) > 1
    return {layer: z[drawn, :N_TOKENS] for layer, z in seen.items()}


def own_losses(family, tokens, heads=(), instead=None, positions=(0, N_TOKENS)):
    """-log p(next token) [prompt query], with z of each head replaced."""

    def edit(layer, z):
        mine = [head.head for head in heads if head.layer == layer]
        if not mine:
            return None
        new = z.clone()
        width = z.shape[-1] // N_HEADS
        for head in mine:
            columns, where = slice(head * width, (head + 1) * width), slice(*positions)
            new[:, where, columns] = instead[layer].expand(z.shape[0], -1, -1)[:, where, columns].to(z.dtype)
        return new

    with hooks(family, edit):
        logp = own_logits(family, tokens).double().log_softmax(-1)
    return -logp[:, :-1].gather(2, torch.from_numpy(tokens)[:, 1:, None])[..., 0].numpy()


def by_token(ablator, prompts, *sets):
    """Our loss at every query by itself: [world prompt query]."""
    queries = {str(i): [np.array([i])] * len(prompts) for i in range(len(prompts[0]) - 1)}
    found = losses(ablator, prompts, queries, [frozenset(heads) for heads in sets])
    return np.stack([found[kind] for kind in queries], axis=-1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", PROJECTION)
def test_every_token_s_loss_is_that_of_an_edit_in_the_family_s_own_code(family, method, probe, corpus):
    tokens = np.stack(probe.prompts)
    ablator = Ablator.of(loaded(family), probe, method=method, corpus=corpus, seed=SEED)
    clean, ablated = by_token(ablator, probe.prompts, [], HEADS)
    wanted = own_losses(family, tokens, HEADS, substitutes(family, method, corpus))
    assert np.abs(clean - own_losses(family, tokens)).max() < 1e-5
    assert np.abs(ablated - wanted).max() < 1e-5
    assert np.abs(ablated - clean).max() > 0.05  # and the edit is no small one


@pytest.mark.parametrize("head", [hs.HeadId(layer, head) for layer in range(2) for head in range(4)], ids=str)
def test_of_query_heads_that_share_keys_and_values_one_goes_alone(head, probe, corpus):
    tokens = np.stack(probe.prompts)
    ablator = Ablator.of(loaded("llama"), probe, method="mean", corpus=corpus)
    (ablated,) = by_token(ablator, probe.prompts, [head])
    assert np.abs(ablated - own_losses("llama", tokens, [head], substitutes("llama", "mean", corpus))).max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "bloom"])
@pytest.mark.parametrize("method", METHODS)
def test_positions_bound_the_edit(family, method, probe, corpus):
    tokens, (first, end) = np.stack(probe.prompts), (7, 11)
    ablator = Ablator.of(loaded(family), probe, method=method, corpus=corpus, positions=(first, end), seed=SEED)
    clean, ablated = by_token(ablator, probe.prompts, [], HEADS)
    wanted = own_losses(family, tokens, HEADS, substitutes(family, method, corpus), positions=(first, end))
    assert np.abs(ablated - wanted).max() < 1e-5
    # what comes before sees nothing of it: nothing attends to later tokens
    assert np.abs(ablated[:, :first] - clean[:, :first]).max() < 1e-6
    assert np.abs(ablated[:, first] - clean[:, first]).max() > 1e-3
    # what comes after does, by attention
    assert np.abs(ablated[:, end:] - clean[:, end:]).max() > 1e-3


def test_ablate_gives_the_means_of_those_losses(corpus):
    # [r, r], r of 8 tokens: queries 8..14 are predictable; queries 0..7 come before
    r = np.stack([np.random.default_rng(prompt).permutation(100)[:12] for prompt in range(N_PROMPTS)])
    tokens = np.concatenate([r[:, :8], r], axis=1)  # r, r and four tokens more, all different
    instead = substitutes("llama", "mean", corpus)
    clean, ablated = own_losses("llama", tokens), own_losses("llama", tokens, HEADS, instead)
    found = hs.ablate(loaded("llama"), HEADS, probe=hs.probe_tokens(tokens), corpus=corpus)
    parts = {"first_copy": slice(0, 8), "second_copy": slice(8, 15), "text": slice(0, 19)}
    assert set(found.losses) == set(parts)
    for kind, part in parts.items():
        change, (a, b) = found.losses[kind], (clean[:, part].mean(1), ablated[:, part].mean(1))
        assert change.clean.mean == approx(a.mean(), abs=1e-5)
        assert change.ablated.mean == approx(b.mean(), abs=1e-5)
        assert change.delta.mean == approx((b - a).mean(), abs=1e-5)
        # paired: the interval of the three differences, which holds t(.975, 2) = 4.3027 times their spread on each side
        half = 4.302653 * (b - a).std(ddof=1) / 3**0.5
        assert change.delta.ci95 == approx(Estimate.of(b - a).ci95, abs=1e-3)
        assert change.delta.ci95[0] <= change.delta.mean - half + 1e-4
        assert change.delta.ci95[1] >= change.delta.mean + half - 1e-4
    assert found.delta_loss_nats == found.losses["second_copy"].delta
    assert (found.heads, found.method, found.n_prompts) == (tuple(HEADS), "mean", N_PROMPTS)


def test_prompts_that_repeat_nothing_have_only_the_text_s_loss(corpus):
    found = hs.ablate(loaded("llama"), "0.1", probe=hs.probe_tokens([[5, 6, 7, 8], [9, 10, 11]]), corpus=corpus)
    assert set(found.losses) == {"text"}
    assert found.delta_loss_nats == found.losses["text"].delta


def test_prompts_of_several_lengths_are_scored_each_by_itself(corpus):
    tokens = [row[:n] for row, n in zip(rows(4, 20), (20, 7, 20, 12), strict=True)]
    ablator = Ablator.of(loaded("gpt2"), hs.probe_tokens(tokens), method="mean", corpus=corpus)
    queries = {"text": [np.arange(len(row) - 1) for row in tokens]}
    together = losses(ablator, tokens, queries, [frozenset(), frozenset(HEADS)])["text"]
    instead = substitutes("gpt2", "mean", corpus)
    for prompt, row in enumerate(tokens):
        short = {layer: z[..., : len(row), :] for layer, z in instead.items()}
        assert together[0, prompt] == approx(own_losses("gpt2", row[None]).mean(), abs=1e-5)
        assert together[1, prompt] == approx(own_losses("gpt2", row[None], HEADS, short).mean(), abs=1e-5)


def test_one_prompt_has_no_interval(corpus):
    found = hs.ablate(loaded("gpt2"), "0.1", probe=hs.probe_tokens(rows(1, 9)), corpus=corpus)
    assert found.delta_loss_nats.ci95 is None
    assert "nats on all tokens, mean)" in repr(found)


# ---- worlds


def all_worlds():
    singles = [frozenset([hs.HeadId(layer, head)]) for layer in range(2) for head in range(4)]
    return [frozenset(), *singles, frozenset(HEADS), singles[0] | singles[1]]


def all_losses(probe, corpus, method="mean", family="llama", sets=None):
    ablator = Ablator.of(loaded(family), probe, method=method, corpus=corpus, seed=SEED)
    queries = {"text": [np.arange(len(one) - 1) for one in probe.prompts]}
    return losses(ablator, probe.prompts, queries, all_worlds() if sets is None else sets)["text"]


def test_a_world_without_heads_is_the_clean_one_bit_for_bit(probe, corpus):
    found = all_losses(probe, corpus, sets=[frozenset(), frozenset(HEADS), frozenset()])
    assert (found[0] == found[2]).all()
    assert (found[0] == all_losses(probe, corpus, sets=[frozenset()])[0]).all()
    assert (found[0] != found[1]).all()


@pytest.mark.parametrize("method", ["mean", "resample"])
@pytest.mark.parametrize("family", ["llama", "gpt_oss", "bloom"])
def test_putting_in_what_was_there_changes_no_bit(family, method):
    # Both prompts are one text, and both of the corpus too: its mean is (z + z) / 2 = z, whatever is drawn is z.
    same = hs.probe_tokens(np.repeat(rows(1, 16), 2, axis=0))
    found = all_losses(same, same, method, family, sets=[frozenset(), frozenset(HEADS)])
    assert (found[0] == found[1]).all()
    # zero is another thing
    zero = all_losses(same, same, "zero", family, sets=[frozenset(), frozenset(HEADS)])
    assert np.abs(zero[0] - zero[1]).min() > 1e-3


def test_what_a_scan_or_a_search_found_can_be_taken_out():
    # Threshold 0: whatever the head, it is found.
    model = loaded("llama")
    short = hs.repeated_tokens(model, n_prompts=2, period=8)
    scores = hs.scan(model, probe=short).heads("previous_token", threshold=0.0)[:1]
    heads = hs.find_induction_heads(model, threshold=0.0, seq_len=16)[:1]
    assert hs.ablate(model, scores, probe=short).heads == (scores[0].head,)
    assert hs.ablate(model, scores[0], probe=short).heads == (scores[0].head,)
    assert hs.ablate(model, heads, probe=short).heads == (hs.HeadId(*heads[0][:2]),)


def test_a_head_named_twice_is_taken_out_once(probe, corpus):
    options = dict(probe=probe, corpus=corpus)
    once, twice = (hs.ablate(loaded("llama"), heads, **options) for heads in (["L0H1"], ["0.1", hs.HeadId(0, 1)]))
    assert twice.heads == once.heads == (hs.HeadId(0, 1),)
    assert twice.losses == once.losses
    # zero of zero is zero: a second edit of the same world would change nothing either
    zero = all_losses(probe, None, "zero", sets=[frozenset([hs.HeadId(0, 1)]), frozenset([hs.HeadId(0, 1)] * 2)])
    assert (zero[0] == zero[1]).all()


@pytest.mark.parametrize("method", ["mean", "resample"])
@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "gptj"])
def test_a_world_s_loss_is_the_same_alone_and_among_others(family, method, probe, corpus):
    together = all_losses(probe, corpus, method, family)
    alone = np.concatenate([all_losses(probe, corpus, method, family, [world]) for world in all_worlds()])
    assert np.abs(together - alone).max() < 1e-5
    backwards = all_losses(probe, corpus, method, family, all_worlds()[::-1])[::-1]
    assert np.abs(together - backwards).max() < 1e-5
    assert np.ptp(together, axis=0).min() > 0.01


def test_worlds_that_start_at_one_layer_go_together_and_none_waits_in_vain():
    start = dict(enumerate([0] * 12 + [1] * 12 + [3]))
    # 5 fit: 12 of a layer are three fours and not 5, 5 and 2 with three of the next; the last has no other to wait for.
    assert list(map(len, _together(range(25), start, 5))) == [4, 4, 4, 4, 4, 4, 1]
    # 30 fit: 12 fill less than half, 24 do not.
    assert list(map(len, _together(range(25), start, 30))) == [24, 1]
    # One fits, whatever it is.
    assert list(_together([3, 1, 2], {1: 5, 2: 0, 3: 5}, 1)) == [[2], [3], [1]]


@pytest.mark.parametrize("method", METHODS)
def test_batch_limits_change_nothing(method, probe, corpus, monkeypatch):
    whole = all_losses(probe, corpus, method)
    for tokens, logits in ((130, 2**25), (1, 128 * 60)):
        monkeypatch.setattr(worlds, "BATCH_TOKENS", {"cpu": tokens})
        monkeypatch.setattr(worlds, "BATCH_LOGITS", {"cpu": logits})
        assert np.abs(all_losses(probe, corpus, method) - whole).max() < 1e-5


def no_room_for(monkeypatch, n_rows):
    """Passes of more than `n_rows` prompts run out of memory. Returns the sizes that were tried."""
    tried, clean, logits, past = [], Replay.clean, Replay.logits, Ablator._pass

    def check(size):
        tried.append(size)
        if size > n_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def small_clean(self, *arguments, **named):
        check(self.n_prompts)
        return clean(self, *arguments, **named)

    def small_logits(self, *arguments, copies=1, **named):
        check(self.n_prompts * copies)
        return logits(self, *arguments, copies=copies, **named)

    def small_pass(self, tokens, visit):
        check(len(tokens))
        return past(self, tokens, visit)

    monkeypatch.setattr(Replay, "clean", small_clean)
    monkeypatch.setattr(Replay, "logits", small_logits)
    monkeypatch.setattr(Ablator, "_pass", small_pass)
    return tried


@pytest.mark.parametrize("n_rows", [6, 2, 1])
@pytest.mark.parametrize("method", METHODS)
def test_running_out_of_memory_halves_and_changes_nothing(method, n_rows, probe, corpus, monkeypatch):
    # 3 prompts, 10 worlds of them at once: 30 rows. Room for 6 halves the worlds, for 2 or 1 also the prompts.
    whole = all_losses(probe, corpus, method)
    tried = no_room_for(monkeypatch, n_rows)
    assert np.abs(all_losses(probe, corpus, method) - whole).max() < 1e-5
    assert max(tried) > n_rows


def test_no_room_for_a_single_prompt_is_said_in_one_line(probe, corpus, monkeypatch):
    no_room_for(monkeypatch, 0)
    with pytest.raises(MemoryRanOut, match="memory ran out with a single prompt in the batch") as caught:
        all_losses(probe, corpus)
    assert "\n" not in str(caught.value)


def test_progress_counts_every_world_of_every_prompt(probe, corpus, monkeypatch):
    monkeypatch.setattr(worlds, "BATCH_TOKENS", {"cpu": 2 * N_TOKENS})  # one prompt at once
    ablator = Ablator.of(loaded("gpt2"), probe, method="mean", corpus=corpus)
    steps = []
    queries = {"text": [np.arange(N_TOKENS - 1)] * N_PROMPTS}
    losses(ablator, probe.prompts, queries, all_worlds(), progress=steps.append)
    assert steps == [11, 11, 11]


# ---- zero, mean and resample


def test_a_head_that_always_writes_the_same_is_missed_by_zero_alone(corpus, probe):
    # Values without weights are their bias, wherever a head attends: z is that bias at each token of each text.
    hf = tiny_causal_lm("gpt2")
    attention = hf.transformer.h[0].attn
    width = hf.config.n_embd // N_HEADS
    values = slice(2 * hf.config.n_embd, 2 * hf.config.n_embd + width)
    attention.c_attn.weight.data[:, values] = 0
    attention.c_attn.bias.data[values] = 1.0
    change = {
        method: hs.ablate(hf, "0.0", probe=probe, corpus=corpus, method=method).delta_loss_nats for method in METHODS
    }
    assert abs(change["mean"].mean) < 1e-6
    assert abs(change["resample"].mean) < 1e-6
    assert abs(change["zero"].mean) > 0.01


def test_mean_and_resample_differ_where_the_corpus_does(probe):
    # One text twice: its mean is itself, and so is what is drawn. Two texts: neither is their mean.
    one = hs.probe_tokens(np.repeat(rows(1, N_TOKENS, seed=7), 2, axis=0))
    two = hs.probe_tokens(rows(2, N_TOKENS, seed=7))
    assert np.abs(all_losses(probe, one, "mean") - all_losses(probe, one, "resample")).max() < 1e-6
    assert np.abs(all_losses(probe, two, "mean") - all_losses(probe, two, "resample"))[1:].max() > 1e-3


def test_the_mean_is_per_position():
    # Corpus and prompts are one token throughout, but positions are added: z differs between positions, and
    # only a mean per position leaves every token's loss as it was.
    same = hs.probe_tokens(np.full((2, 16), 9))
    model = loaded("gpt2")
    z = own_z("gpt2", np.stack(same.prompts))[1][0]
    assert (z - z.mean(0)).abs().max() > 0.1
    found = hs.ablate(model, HEADS, probe=same, corpus=same)
    assert found.losses["text"].delta.mean == 0.0


def test_a_corpus_may_be_longer_than_the_prompts_and_ragged(probe, corpus):
    # only its first positions are read: causal attention does not know what follows
    ragged = hs.probe_tokens([row[:n] for row, n in zip(corpus.prompts, (20, 21, 23, 22, 20), strict=True)])
    for method in METHODS:
        assert np.abs(all_losses(probe, ragged, method) - all_losses(probe, corpus, method)).max() < 1e-5


def test_each_prompt_keeps_its_draw_whatever_the_batch(probe, corpus):
    # 20 prompts draw from 5 texts; in one batch or prompt by prompt, prompt i draws the same
    many = hs.probe_tokens(rows(20, N_TOKENS, seed=5))
    whole = all_losses(many, corpus, "resample")
    first = all_losses(hs.probe_tokens(np.stack(many.prompts[:8])), corpus, "resample")
    assert np.abs(whole[:, :8] - first).max() < 1e-5
    again = all_losses(many, corpus, "resample")
    assert (whole == again).all()
    ablator = Ablator.of(loaded("llama"), many, method="resample", corpus=corpus, seed=SEED + 1)
    queries = {"text": [np.arange(N_TOKENS - 1)] * 20}
    other = losses(ablator, many.prompts, queries, all_worlds())["text"]
    assert np.abs(other - whole).max() > 1e-3


def test_part_of_the_prompts_keeps_the_draws_of_the_whole(corpus):
    many = hs.probe_tokens(rows(9, N_TOKENS, seed=5))
    ablator = Ablator.of(loaded("llama"), many, method="resample", corpus=corpus, seed=SEED)
    queries = {"text": [np.arange(N_TOKENS - 1)] * 9}
    whole = losses(ablator, many.prompts, queries, all_worlds())["text"]
    part = losses(ablator, many.prompts, queries, all_worlds(), index=[7, 2, 3])["text"]
    assert np.abs(part - whole[:, [7, 2, 3]]).max() < 1e-5


def test_the_default_corpus_is_clean_and_disjoint():
    model = loaded("llama")
    probe = hs.repeated_tokens(model, n_prompts=6, period=10)
    corpus = Ablator.of(model, probe, method="mean").corpus
    assert len(corpus.prompts) == worlds.CORPUS_PROMPTS
    scored = {tuple(prompt) for prompt in probe.prompts} | {tuple(control) for control in probe.controls}
    assert not scored & {tuple(prompt) for prompt in corpus.prompts}
    for prompt in corpus.prompts:
        assert len(copies(prompt).second) <= 1  # 100 random tokens of 125 may repeat a pair by chance
    # they are the controls of the prompts that would come next
    further = hs.repeated_tokens(model, n_prompts=6 + len(corpus.prompts), period=10)
    assert all((a == b).all() for a, b in zip(corpus.prompts, further.controls[6:], strict=True))
    # zero needs none
    assert Ablator.of(model, probe, method="zero").corpus is None


# ---- heads that we know

PERIOD = 20


def effect(built, heads, method):
    model = hs.load(built.model)
    probe = hs.repeated_tokens(model, n_prompts=6, period=PERIOD)
    found = hs.ablate(model, heads, probe=probe, method=method)
    return found.losses["second_copy"], found.losses["first_copy"]


@pytest.fixture(scope="module")
def one():
    return handbuilt(vocab_size=128, n_positions=128, decoys=("noise", "attends_only", "duplicate_token"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("role", ["induction", "previous_token"])
def test_without_the_circuit_s_heads_the_second_copy_is_lost_and_the_first_is_not_touched(one, role, method):
    second, first = effect(one, one.heads(role), method)
    assert second.clean.mean < 0.01
    # Then there is nothing to go by: log(128) = 4.85 nats. Resampled, a wrong token is predictable: worse still.
    assert second.ablated.mean == approx(4.852, abs=0.1) if method == "zero" else second.ablated.mean > 4
    assert second.delta.ci95[0] > 4
    assert first.clean.mean == approx(4.852, abs=0.1)
    if method == "zero":
        assert abs(first.delta.mean) < 0.01
    # mean and resample bring in other texts' tokens: that can only harm, and far less than the loss of a copy
    assert abs(first.delta.mean) < 0.25 * second.delta.mean


def test_without_a_decoy_nothing_happens(one):
    for role in ("noise", "attends_only", "duplicate_token", "none"):
        for head in one.heads(role)[:2]:
            second, first = effect(one, head, "zero")
            assert abs(second.delta.mean) < 1e-3, head
            assert abs(first.delta.mean) < 1e-3, head


def test_of_two_redundant_heads_either_can_go_but_not_both():
    built = handbuilt(vocab_size=128, n_positions=128, copying="redundant")
    first, second = built.heads("redundant_induction")
    for alone in (first, second):
        assert abs(effect(built, alone, "zero")[0].delta.mean) < 0.01
    both, control = effect(built, [first, second], "zero")
    assert both.delta.mean == approx(4.852, abs=0.1)
    assert abs(control.delta.mean) < 0.01


def test_of_two_half_copiers_neither_can_go():
    # their noise, three times the copy, cancels only in the sum
    built = handbuilt(vocab_size=128, n_positions=128, copying="halves")
    for half in built.heads("half_copier"):
        assert effect(built, half, "zero")[0].delta.mean > 4


def test_edits_before_the_second_copy_s_queries_spare_the_induction_head(one):
    # The induction head acts where its query is: ablated in the first copy alone it is not missed.
    model = hs.load(one.model)
    probe = hs.repeated_tokens(model, n_prompts=6, period=PERIOD, jitter=False)
    length, end = len(probe.prompts[0]), PERIOD + 1
    options = dict(probe=probe, method="zero")
    early, late = (
        hs.ablate(model, one.heads("induction"), positions=part, **options) for part in ((0, end), (end, length))
    )
    assert abs(early.delta_loss_nats.mean) < 1e-3
    assert late.delta_loss_nats.mean > 4
    # The previous-token head acts where the keys are, in the first copy.
    early, late = (
        hs.ablate(model, one.heads("previous_token"), positions=part, **options) for part in ((0, end), (end, length))
    )
    assert early.delta_loss_nats.mean > 4
    assert abs(late.delta_loss_nats.mean) < 0.01


# ---- the result


def test_the_default_probe_and_the_document():
    found = hs.ablate(handbuilt().model, "1.0", method="resample", seed=3)
    assert found.n_prompts == 32
    assert found.probe["kind"] == "repeated_tokens"
    assert found.probe["seed"] == found.provenance.seed == 3
    assert found.corpus == {"kind": "controls of further prompts"}
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["schema"] == "headscope.ablation/1"
    assert document["method"] == "resample"
    assert document["delta_loss_nats"] == document["losses"]["second_copy"]["delta"]
    assert document["delta_loss_nats"]["mean"] == found.delta_loss_nats.mean
    assert "L1H0" in repr(found)


def test_a_loop_s_second_call_is_a_head_of_its_own(corpus, probe):
    # hrm_text runs layer 0 six times
    model, tokens = loaded("hrm_text"), np.stack(probe.prompts)
    ablator = Ablator.of(model, probe, method="zero")
    sets = [[hs.HeadId(0, 1, call)] for call in range(6)]
    found = by_token(ablator, probe.prompts, *sets)
    (name,) = [name for name, layer in model.check.route.layers.items() if layer == 0]
    projection = model.hf.get_submodule(name).o_proj
    for call, ours in enumerate(found):
        seen = []

        def silence(module, inputs, call=call, seen=seen):
            z = inputs[0].clone()
            if len(seen) == call:
                width = z.shape[-1] // N_HEADS
                z[..., width : 2 * width] = 0
            seen.append(1)
            return (z,)

        handle = projection.register_forward_pre_hook(silence)
        try:
            with torch.no_grad():
                logp = model.hf(input_ids=torch.from_numpy(tokens), use_cache=False).logits.double().log_softmax(-1)
        finally:
            handle.remove()
        assert len(seen) == 6
        wanted = -logp[:, :-1].gather(2, torch.from_numpy(tokens)[:, 1:, None])[..., 0].numpy()
        assert np.abs(ours - wanted).max() < 1e-5, call


# ---- bad input


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("7.0", "has no head L7H0; it has 2 layers of up to 4 heads"),
        (["0.1", "0.4", "2.0"], "has no head L0H4, L2H0"),
        ([], "there is no head; name at least one"),
        ("first", "'first' is not a head; write layer and head from 0"),
        ("L0H1#1", "never reaches L0H1#1: its layer 0 does not run its attention 2 times.*name the head without '#'"),
        ([f"{layer}.{head}" for layer in range(2) for head in range(4)], "all 8 heads of .* are to be ablated"),
    ],
)
def test_heads_that_cannot_be_taken_out(heads, message, probe, corpus):
    with pytest.raises(ArgumentError, match=message) as caught:
        hs.ablate(loaded("llama"), heads, probe=probe, corpus=corpus)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("positions", [(0, 21), (-1, 5), (5, 5), (6, 2), (20, 25)])
def test_positions_outside_the_prompts(positions, probe, corpus):
    with pytest.raises(ArgumentError, match=r"do not lie in prompts of 20 tokens; give .* like \(0, 20\)"):
        hs.ablate(loaded("llama"), "0.1", probe=probe, corpus=corpus, positions=positions)


def test_an_unknown_method(probe, corpus, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for those who do not have types checked
    with pytest.raises(ArgumentError, match="'knockout' is not known; use one of zero, mean, resample"):
        hs.ablate(loaded("llama"), "0.1", probe=probe, corpus=corpus, method="knockout")


@pytest.mark.parametrize("method", ["mean", "resample"])
def test_prompts_of_your_own_need_a_corpus(method, probe):
    with pytest.raises(ArgumentError, match=f"{method} ablation on prompts of your own needs corpus=.*method='zero'"):
        hs.ablate(loaded("llama"), "0.1", probe=probe, method=method)
    assert hs.ablate(loaded("llama"), "0.1", probe=probe, method="zero").corpus is None


def test_a_corpus_that_is_too_short(probe):
    short = hs.probe_tokens([list(range(3, 30)), list(range(3, 22))])
    with pytest.raises(ShapeError, match="its shortest prompt has 19 tokens, and every position of the prompts, 20"):
        hs.ablate(loaded("llama"), "0.1", probe=probe, corpus=short)
    single = hs.probe_tokens([list(range(3, 30))])
    with pytest.raises(ShapeError, match="it has one prompt, and a mean or a draw needs at least two"):
        hs.ablate(loaded("llama"), "0.1", probe=probe, corpus=single)


def test_tokens_outside_the_vocabulary(probe):
    foreign = hs.probe_tokens(np.full((2, 20), 500))
    with pytest.raises(TokenError, match="token id 500 is outside the vocabulary"):
        hs.ablate(loaded("llama"), "0.1", probe=probe, corpus=foreign)
    with pytest.raises(TokenError, match="token id 500 is outside the vocabulary"):
        hs.ablate(loaded("llama"), "0.1", probe=foreign, method="zero")


def test_a_prompt_of_a_single_token():
    with pytest.raises(TokenError, match="prompt 1 has a single token, so no next token and no loss"):
        hs.ablate(loaded("llama"), "0.1", probe=hs.probe_tokens([[5, 6], [7]]), method="zero")


def test_a_model_without_a_head(probe):
    with torch.random.fork_rng(devices=[]):
        hf = GPT2Model(tiny_config("gpt2")).eval()
    with pytest.raises(UnsupportedModel, match="gives no logits over a vocabulary, so its loss is not defined"):
        hs.ablate(hf, "0.1", probe=probe, method="zero")


def test_a_loss_that_is_no_number(probe):
    model = hs.load(tiny_causal_lm("llama"))
    model.hf.lm_head.weight.data[5] = float("inf")
    with pytest.raises(NonFiniteError, match="a loss is NaN or infinite; load the model in a wider dtype"):
        hs.ablate(model, "0.1", probe=probe, method="zero")


def test_the_prompts_are_not_written_to(probe, corpus):
    before = [row.copy() for row in (*probe.prompts, *corpus.prompts)]
    for method in METHODS:
        hs.ablate(loaded("llama"), HEADS, probe=probe, corpus=corpus, method=method)
    assert all((a == b).all() for a, b in zip(before, (*probe.prompts, *corpus.prompts), strict=True))


def test_tokens_that_are_read_but_never_predicted():
    # mllama embeds 136 ids here, of which the last 8 stand for images: logits end at 127
    model = hs.load(tiny_causal_lm("mllama"))
    assert (model.n_embeddings, model.n_predicted) == (136, 128)
    assert max(int(prompt.max()) for prompt in hs.repeated_tokens(model, n_prompts=8, period=20).prompts) < 128
    run = [*range(5, 30), 130]
    with pytest.raises(TokenError, match="reads token 130 but never predicts it: its logits end at 127; leave it out"):
        hs.ablate(model, ["L0H0"], probe=hs.repeated_tokens(model, n_prompts=4, period=8, token_ids=run))
