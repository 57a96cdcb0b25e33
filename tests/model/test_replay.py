"""Passes that start at a later layer: the clean logits bit for bit, the edits of a whole pass, nothing left behind."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from transformers import GPT2Model

import headscope as hs
from benchmarks.tiny import tiny_causal_lm, tiny_config
from headscope.errors import UnsupportedModel
from headscope.model import replay as replaying
from headscope.model import taps
from headscope.model.replay import Replay, decoder_layers, restarts
from tests.running import forward

FAMILIES = {
    # family: layer executions of one pass
    "gpt2": 2,
    "llama": 2,  # 4 query heads share 2 KV heads
    "gemma2": 2,  # soft-cap, sliding window
    "qwen3_next": 2,  # layer 0 is linear attention
    "nemotron_h": 4,  # one layer of 4 attends
    "deepseek_v3": 2,  # latent attention, mixture of experts
    "gpt_oss": 2,  # sinks
    "hrm_text": 16,  # loops over its 4 layers
    "bloom": 2,  # runs in its own code
}


@functools.cache
def loaded(family):
    return hs.load(tiny_causal_lm(family))


def ignore(attention):
    return None


def without_head(attention):
    """Head 1 of every layer writes nothing."""
    z = attention.z.clone()
    z[:, :, 1] = 0
    return z


def assert_close(given, wanted):
    torch.testing.assert_close(given, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=0)


def assert_untouched(model):
    """No forward of ours, no hook, eager attention as before."""
    for layer in decoder_layers(model):
        assert "forward" not in layer.__dict__
    for module in model.hf.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    assert model.hf.config._attn_implementation == "eager"


# ---- the clean pass again


@pytest.mark.parametrize("family", FAMILIES)
def test_from_every_layer_the_logits_are_the_clean_ones_bit_for_bit(family, tokens):
    model = loaded(family)
    assert restarts(model)
    replay, order = Replay(model, tokens), []
    clean = replay.clean(lambda attention: order.append((attention.layer, attention.call)))
    with torch.no_grad():
        assert_close(clean, model.hf(input_ids=tokens, use_cache=False).logits)
    for start in range(FAMILIES[family] + 1):
        seen = []

        def visit(attention, seen=seen):
            seen.append((attention.layer, attention.call))

        assert torch.equal(replay.logits(visit, start=start), clean)
        # the layers before the start did not run: their attention was not seen, yet it is counted
        assert seen == [at for at in order if replay.start_of(*at) >= start]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_costs_a_part_of_the_pass_and_gives_what_the_whole_pass_gives(family, tokens):
    model = loaded(family)
    replay = Replay(model, tokens)
    clean = replay.clean()
    layer = max(model.check.heads)

    def edit(attention):
        return without_head(attention) if (attention.layer, attention.call) == (layer, 0) else None

    start = replay.start_of(layer)
    assert start > 0
    part = replay.logits(edit, start=start)
    assert torch.equal(part, forward(model.hf, model.check.route, tokens, edit).logits)
    assert not torch.allclose(part, clean, atol=1e-3)


def test_starts_count_layers_without_attention_and_repeated_ones(tokens):
    hybrid, looped = Replay(loaded("nemotron_h"), tokens), Replay(loaded("hrm_text"), tokens)
    hybrid.clean()
    assert [hybrid.start_of(layer) for layer in range(5)] == [None, None, 2, None, None]
    looped.clean()
    # its fast pair of layers runs 3 times, then the slow pair once; and all of it again
    assert [looped.start_of(0, call) for call in range(7)] == [0, 2, 4, 8, 10, 12, None]
    assert [looped.start_of(2, call) for call in range(3)] == [6, 14, None]


def test_a_looped_layer_s_second_call_is_its_second_also_where_the_first_is_skipped(tokens):
    model = loaded("hrm_text")
    replay = Replay(model, tokens)
    replay.clean()

    def second_call(attention):
        return without_head(attention) if (attention.layer, attention.call) == (0, 1) else None

    whole = forward(model.hf, model.check.route, tokens, second_call).logits
    assert torch.equal(replay.logits(second_call, start=0), whole)
    assert torch.equal(replay.logits(second_call, start=replay.start_of(0, 1)), whole)
    # skipped itself, it cannot be edited
    assert torch.equal(replay.logits(second_call, start=replay.start_of(0, 1) + 1), replay.clean())


@pytest.mark.parametrize("family", FAMILIES)
def test_three_copies_give_the_clean_logits_three_times(family, tokens):
    replay = Replay(loaded(family), tokens)
    clean = replay.clean()
    for start in (0, 1, FAMILIES[family]):
        copies = replay.logits(ignore, start=start, copies=3)
        assert copies.shape == (6, *clean.shape[1:])
        assert_close(copies, torch.cat([clean, clean, clean]))


def test_a_copy_s_edit_stays_in_that_copy(tokens):
    # row c * n_prompts + b: of 3 copies of 2 prompts, copy 1 is rows 2 and 3
    replay = Replay(loaded("llama"), tokens)
    clean = replay.clean()
    start = replay.start_of(1)

    def in_copy_1(attention):
        z = attention.z.clone()
        z[2:4] = without_head(attention)[2:4]
        return z

    alone = replay.logits(without_head, start=start)
    assert (alone - clean).abs().max() > 0.1
    assert_close(replay.logits(in_copy_1, start=start, copies=3), torch.cat([clean, alone, clean]))


def test_one_prompt_can_be_copied_too(tokens):
    replay = Replay(loaded("gemma2"), tokens[:1])
    clean = replay.clean()
    assert_close(replay.logits(ignore, start=1, copies=4), clean.repeat(4, 1, 1))


@pytest.mark.parametrize("family", ["llama", "bloom", "hrm_text"])
def test_seeing_alone_shows_the_same_z_and_may_stop_early(family, tokens):
    model = loaded(family)
    replay, whole, part = Replay(model, tokens), {}, {}
    replay.clean(lambda attention: whole.update({(attention.layer, attention.call): attention.z}))

    def visit(attention):
        part[attention.layer, attention.call] = attention.z
        if len(part) == 1:
            raise taps.Stop

    replay.see(visit, start=1)
    ((at, z),) = part.items()
    assert replay.start_of(*at) == 1
    assert torch.equal(z, whole[at])
    assert_untouched(model)


# ---- layers that hand each other more than their output


def test_a_family_that_cannot_restart_is_told_and_runs_whole_passes(tokens):
    # the last two layers of gemma3n attend to keys and values that layers 0 and 1 made
    model = loaded("gemma3n_text")
    assert not restarts(model)
    replay = Replay(model, tokens)
    clean = replay.clean()
    assert replay.kept == []
    assert [replay.start_of(layer) for layer in range(4)] == [0, 0, 0, 0]
    assert torch.equal(replay.logits(ignore), clean)
    assert_close(replay.logits(ignore, copies=2), clean.repeat(2, 1, 1))
    assert_untouched(model)


class _Remembers(nn.Module):
    """A stage of a model that leaves its input on another module, past the residual stream."""

    def __init__(self, layer, note, add):
        super().__init__()
        self.layer, self.note, self.add = layer, note, add

    def forward(self, hidden, *arguments, **named):
        if self.add:
            hidden = hidden + 0.1 * self.note["hidden"]
        else:
            self.note["hidden"] = hidden
        return self.layer(hidden, *arguments, **named)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.layer, name)


def test_layers_that_whisper_to_each_other_are_found_out():
    # Layer 1 reads what layer 0 left behind. A restart with two copies finds the note of one: another shape.
    hf, note = tiny_causal_lm("llama"), {}
    layers = hf.model.layers
    hf.model.layers = nn.ModuleList([_Remembers(layer, note, add=bool(i)) for i, layer in enumerate(layers)])
    assert not restarts(hs.load(hf))


def test_restarts_are_tried_once_per_model(monkeypatch):
    model = hs.load(tiny_causal_lm("gpt2"))
    assert restarts(model)
    monkeypatch.setattr(replaying, "Replay", lambda model: pytest.fail("tried again"))
    assert restarts(model)


def test_running_out_of_memory_says_nothing_about_a_model(monkeypatch):
    model = hs.load(tiny_causal_lm("gpt2"))

    def full(*arguments, **named):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Replay, "logits", full)
        with pytest.raises(torch.OutOfMemoryError):
            restarts(model)
    assert restarts(model)


# ---- only some tokens' logits

PLACES = torch.tensor([[0, 23], [1, 0], [1, 11], [0, 2]])


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3n_text"])
def test_places_give_those_rows_of_the_logits(family, tokens):
    replay = Replay(loaded(family), tokens)
    whole = replay.clean()
    assert_close(replay.clean(places=PLACES), whole[PLACES[:, 0], PLACES[:, 1]])
    start = replay.start_of(max(loaded(family).check.heads))
    edited = replay.logits(without_head, start=start, copies=2)
    rows = PLACES + torch.tensor([2, 0])  # in the second copy
    assert_close(replay.logits(without_head, start=start, copies=2, places=rows), edited[rows[:, 0], rows[:, 1]])


def test_only_those_tokens_are_unembedded(tokens):
    model = loaded("llama")
    sizes = []
    handle = model.hf.lm_head.register_forward_hook(lambda module, inputs, logits: sizes.append(tuple(logits.shape)))
    try:
        replay = Replay(model, tokens)
        sizes.clear()
        replay.clean(places=PLACES)
        replay.clean()
    finally:
        handle.remove()
    assert sizes == [(1, 4, 128), (2, 24, 128)]


class _Centred(nn.Linear):
    """An unembedding that subtracts the mean over tokens: it needs them all."""

    def forward(self, hidden):
        logits = super().forward(hidden)
        return logits - logits.mean(1, keepdim=True)


def test_an_unembedding_that_needs_every_token_gets_every_token(tokens):
    hf = tiny_causal_lm("llama")
    centred = _Centred(64, hf.config.vocab_size, bias=False)
    centred.weight.data.copy_(hf.lm_head.weight)
    hf.lm_head = centred
    replay = Replay(hs.load(hf), tokens)
    whole = replay.clean()
    # 48 tokens are centred, not 4: the mean over 4 rows taken by themselves would be zero
    some = replay.clean(places=PLACES)
    assert_close(some, whole[PLACES[:, 0], PLACES[:, 1]])
    assert some.mean(0).abs().max() > 0.1


# ---- nothing is left behind


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_the_model_is_left_as_it_was(family, tokens):
    model = loaded(family)
    replay = Replay(model, tokens)
    replay.clean(places=PLACES)
    replay.logits(without_head, start=1, copies=2, places=PLACES)
    assert_untouched(model)


class Stop(Exception):
    pass


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_and_also_after_an_exception_in_a_visit(family, tokens):
    model = loaded(family)
    replay = Replay(model, tokens)
    clean = replay.clean()

    def fail(attention):
        if attention.layer == 1:
            raise Stop

    with pytest.raises(Stop):
        replay.logits(fail, start=1, copies=2, places=PLACES)
    assert_untouched(model)
    assert torch.equal(replay.logits(ignore, start=1), clean)
    with pytest.raises(Stop):
        Replay(model, tokens).clean(fail, places=PLACES)
    assert_untouched(model)
    assert torch.equal(Replay(model, tokens).clean(), clean)


def test_a_forward_that_someone_else_put_there_is_put_back(tokens):
    # as accelerate does, to move a layer's weights before it runs
    model = hs.load(tiny_causal_lm("llama"))
    layer = model.hf.model.layers[0]
    calls = []
    own = layer.forward

    def theirs(*arguments, **named):
        calls.append(1)
        return own(*arguments, **named)

    layer.forward = theirs
    replay = Replay(model, tokens)
    calls.clear()
    clean = replay.clean()
    assert torch.equal(replay.logits(ignore, start=0), clean)
    assert len(calls) == 2
    assert torch.equal(replay.logits(ignore, start=1), clean)
    assert len(calls) == 2
    assert layer.__dict__["forward"] is theirs


@pytest.mark.parametrize("outer", ["llama", "bloom"])
def test_a_visit_may_replay_another_model(outer, tokens):
    first, second = Replay(loaded(outer), tokens), Replay(loaded("gpt2"), tokens)
    wanted = first.clean(), second.clean()
    inner = []

    def visit(attention):
        inner.append(second.logits(ignore, start=1))
        inner.append(second.clean())

    assert torch.equal(first.logits(visit, start=1), wanted[0])
    assert torch.equal(first.clean(visit), wanted[0])
    assert len(inner) == 6  # two for each of 1 + 2 attention calls
    assert all(torch.equal(logits, wanted[1]) for logits in inner)
    assert torch.equal(first.logits(ignore, start=1), wanted[0])


def test_training_mode_is_put_back(tokens):
    hf = tiny_causal_lm("gpt2")
    model = hs.load(hf)
    clean = Replay(model, tokens).clean()
    hf.train()
    again = Replay(model, tokens).clean()  # dropout 0.1, were it on
    assert hf.training
    assert all(module.training for module in hf.modules())
    assert torch.equal(clean, again)


def test_gradients_are_built_only_on_demand(tokens):
    replay = Replay(loaded("llama"), tokens)
    assert not replay.clean().requires_grad
    assert not replay.logits(ignore, start=1).requires_grad
    asked = replay.clean(grad=True)
    assert asked.requires_grad
    assert replay.kept == []  # a kept output would hold the graph


def test_a_model_without_a_head_is_refused_in_one_line(tokens):
    with torch.random.fork_rng(devices=[]):
        hf = GPT2Model(tiny_config("gpt2")).eval()
    with pytest.raises(
        UnsupportedModel, match="GPT2Model.* gives no logits over a vocabulary.*load the model with its"
    ) as e:
        Replay(hs.load(hf), tokens)
    assert "\n" not in str(e.value)
