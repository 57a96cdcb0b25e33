"""What the self-check says of models that are right, wrong, broken, and not language models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)
from transformers.models.gpt2 import modeling_gpt2
from transformers.models.llama import modeling_llama

from benchmarks.tiny import tiny_causal_lm
from headscope.errors import NonFiniteError
from headscope.model import kernels
from headscope.model.selfcheck import N_TOKENS, layer_numbers
from tests.running import forward, selfcheck


def is_one_line(reason):
    return reason and "\n" not in reason and not reason.endswith(".")


# Families


@pytest.mark.parametrize(
    ("family", "kernel", "n_kv_heads"),
    [
        ("gpt2", "flash", 4),
        ("llama", "flash", 2),
        ("gemma2", "tiled", 2),
        ("gpt_oss", "flash", 2),
        ("inkling2_text", "flash", 2),  # passes its sinks under another name, and attends over its layers besides
        ("falcon", "flash", 1),  # its own call of scaled-dot-product attention
    ],
)
def test_exact_families(family, kernel, n_kv_heads, checked):
    _, check = checked(family)
    assert check.support == "exact", check.reason
    assert check.max_abs_diff < 1e-4
    assert check.kernels == (kernel,)
    assert check.heads == {0: 4, 1: 4}
    assert check.kv_heads == n_kv_heads
    assert f"its output differs from its own by {check.max_abs_diff:.2g}" in check.reason
    assert is_one_line(check.reason)


@pytest.mark.parametrize("family", ["mpt"])
def test_families_whose_queries_cannot_be_seen_are_degraded(family, checked):
    _, check = checked(family)
    assert check.support == "degraded"
    assert "patterns and z are read there, O(n^2) memory" in check.reason
    assert check.max_abs_diff == 0.0
    assert (check.kernels, check.kv_heads, check.route.path) == (("own",), None, "hooks")
    assert is_one_line(check.reason)


@pytest.mark.parametrize("family", ["bloom", "gptj", "gpt_neo", "gpt_neox_japanese", "codegen", "xglm"])
def test_families_of_code_of_their_own_are_read_where_probabilities_mix_values(family, checked):
    _, check = checked(family)
    assert (check.support, check.route.path, check.max_abs_diff) == ("exact", "module", 0.0)
    assert (check.heads, check.kv_heads) == ({0: 4, 1: 4}, 4)  # so queries and keys are seen


def test_streams_beside_the_tokens_are_refused(checked):
    # prophetnet predicts further tokens in a stream of their own; its projection reads [prompt, stream, token, d_model]
    _, check = checked("prophetnet")
    assert check.support == "unsupported"
    assert "not a row for each of 17 tokens" in check.reason


def test_keys_that_are_not_tokens_are_said(checked):
    # deepseek_v4 attends to compressed runs of tokens beside the tokens, and adds their mask to its own
    _, check = checked("deepseek_v4")
    assert check.support == "degraded"
    assert check.reason == "it attends to 4 keys that are not tokens; scores cover the tokens"  # 17 // 4 runs of 4
    assert check.route.additive_mask
    assert check.max_abs_diff < 1e-4


def test_a_family_that_leaves_causality_to_its_mask_is_given_one(checked):
    # bigbird_pegasus calls itself not causal: without a mask it would look ahead, with one it is a decoder
    _, check = checked("bigbird_pegasus")
    assert check.support == "exact", check.reason
    assert check.route.additive_mask


@pytest.mark.parametrize("family", ["mamba", "rwkv"])
def test_models_without_attention_are_unsupported(family, checked):
    _, check = checked(family)
    assert (check.support, hasattr(check, "route"), check.heads) == ("unsupported", False, {})
    assert check.reason == "no softmax attention over its tokens was seen in its forward pass"


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertLMHeadModel(BertConfig(vocab_size=64, **SMALL)),
        lambda: T5EncoderModel(T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
    ],
    ids=["bert", "t5 encoder"],
)
def test_a_model_that_looks_ahead_is_unsupported(make):
    check = selfcheck(make().eval())
    assert (check.support, hasattr(check, "route")) == ("unsupported", False)
    assert "attend to later tokens" in check.reason


def test_a_model_that_attends_among_patches_too_is_unsupported(checked):
    # blt: bytes attend to bytes in three stacks, patches to patches in a fourth, and each to the other
    _, check = checked("blt")
    assert (check.support, hasattr(check, "route")) == ("unsupported", False)
    assert "not among the tokens" in check.reason


def test_bert_as_a_decoder_is_exact(checked):
    assert checked("bert")[1].support == "exact"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
            ),
            "input_ids or inputs_embeds",
        ),
        (lambda: ViTModel(ViTConfig(image_size=8, patch_size=4, **SMALL)), "not one table of tokens"),
        (lambda: tiny_causal_lm("llama").to("meta"), "meta tensors"),
    ],
    ids=["encoder-decoder", "vision", "no storage"],
)
def test_a_model_that_does_not_run_on_token_ids_is_unsupported_with_its_own_words(make, reason):
    check = selfcheck(make().eval())
    assert (check.support, hasattr(check, "route")) == ("unsupported", False)
    assert check.reason.startswith("it does not run on token ids alone (")
    assert reason in check.reason
    assert is_one_line(check.reason)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_other_precisions_are_exact_within_their_rounding(family, dtype):
    check = selfcheck(tiny_causal_lm(family).to(dtype))
    assert check.support == "exact", check.reason
    assert (check.max_abs_diff < 1e-4) == (dtype == torch.float64)


def test_a_model_without_head_is_checked_by_its_hidden_states():
    model = tiny_causal_lm("gpt2").transformer
    check = selfcheck(model)
    assert check.support == "exact"
    assert check.route.layers == {"h.0.attn": 0, "h.1.attn": 1}


@pytest.mark.parametrize("n_positions", [1, 2, 8])
def test_a_short_context_is_not_exceeded(n_positions):
    config = GPT2Config(n_positions=n_positions, n_embd=16, n_head=2, n_layer=1, vocab_size=50)
    assert selfcheck(GPT2LMHeadModel(config).eval()).support == "exact"


def test_a_way_to_attend_that_the_owner_s_settings_break_is_passed_over():
    # asked for its attentions, falcon takes its eager code with the masks of the other: read there, as any module's
    model = tiny_causal_lm("falcon")
    model.config.output_attentions = True
    check = selfcheck(model)
    assert (check.support, check.route.path) == ("exact", "module")
    assert model.config.output_attentions


@pytest.mark.parametrize("setting", ["output_attentions", "output_hidden_states"])
def test_what_else_the_owner_has_the_model_return_changes_nothing(setting):
    model = tiny_causal_lm("gpt2")
    setattr(model.config, setting, True)
    assert selfcheck(model).support == "exact"


# Broken models


def test_nan_in_a_weight_is_named():
    model = tiny_causal_lm("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(
        NonFiniteError, match=r"NaN or infinite numbers in weights model\.layers\.1\.mlp\.up_proj\.weight;"
    ) as e:
        selfcheck(model)
    assert "\n" not in str(e.value)
    for layer in model.model.layers:
        for weight in layer.mlp.parameters():  # 2 layers of 3 weights
            weight.data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match=r"gate_proj\.weight, .* and 3 more;"):
        selfcheck(model)


def test_infinity_from_finite_weights_is_in_the_output():
    model = tiny_causal_lm("llama")
    model.lm_head.weight.data.fill_(3e38)
    with pytest.raises(NonFiniteError, match="NaN or infinite numbers in its output"):
        selfcheck(model)


def test_heads_that_write_nothing_can_be_read_but_not_edited():
    model = tiny_causal_lm("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    check = selfcheck(model)
    assert check.support == "degraded"
    assert check.reason == "heads can be read, but replacing their results does not change the output"
    assert check.route.calls > 0


def test_running_out_of_memory_is_no_verdict(monkeypatch):
    model = tiny_causal_lm("llama")
    monkeypatch.setattr(model.model, "forward", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        selfcheck(model)


# Attention that is not what it seems


@pytest.fixture
def mysterious(monkeypatch):
    """A llama whose attention passes `mystery`, by which its own eager code multiplies the logits."""
    plain, eager = modeling_llama.LlamaAttention.forward, modeling_llama.eager_attention_forward

    def make(mystery):
        def passing(self, *args, **named):
            return plain(self, *args, mystery=mystery, **named)

        def own(module, query, *args, mystery, **named):
            return eager(module, mystery * query, *args, **named)

        monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", passing)
        monkeypatch.setattr(modeling_llama, "eager_attention_forward", own)
        return tiny_causal_lm("llama")

    return make


@pytest.mark.parametrize("mystery", [1.5, 1.001, torch.tensor(1.5)])
def test_an_unknown_argument_is_never_ignored(mystery, mysterious, tokens):
    model = mysterious(mystery)
    check = selfcheck(model)
    assert check.support == "degraded"
    assert (check.route.path, check.route.implementation) == ("hooks", "eager")
    # and the patterns are those that its own code, mystery included, makes
    seen = []
    forward(model, check.route, tokens, lambda attention: seen.append(attention.pattern()))
    with torch.no_grad():
        own = model(input_ids=tokens, output_attentions=True, use_cache=False).attentions
    assert all(torch.equal(x, y) for x, y in zip(seen, own, strict=True))


def test_an_unknown_argument_without_effect_still_keeps_off_our_function(mysterious):
    # its call of scaled-dot-product attention, which ignores it, gives its own output: that may be watched
    check = selfcheck(mysterious(1.0))
    assert check.route.path == "hooks"
    assert check.kernels == ("flash",)


def test_an_unknown_argument_that_is_none_says_nothing(mysterious, monkeypatch):
    model = mysterious(None)
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", _without_mystery(modeling_llama.eager_attention_forward)
    )
    assert selfcheck(model).route.path == "interface"


def _without_mystery(own):
    return lambda *args, mystery, **named: own(*args, mystery=1.0, **named)


def wrong(monkeypatch, change):
    """Our flash kernel, with its (z, lse) changed."""
    monkeypatch.setitem(kernels.KERNELS, "flash", lambda *args: change(*kernels.flash(*args)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z, lse: (z * 1.001, lse), "not the mix of their values by the probabilities seen"),
        (lambda z, lse: (z, lse + 1e-3), "not the mix of their values by the probabilities seen"),
        (lambda z, lse: (z, lse * float("nan")), "not the mix of their values by the probabilities seen"),
        (lambda z, lse: (z, torch.where(torch.arange(lse.shape[-1]) == 5, torch.nan, lse)), "not the mix"),
        (lambda z, lse: (z * 1.5, lse), "its output through our attention differs from its own by"),
        (lambda z, lse: (z * float("nan"), lse), "its output through our attention differs from its own by nan"),
    ],
    ids=["z off by 1e-3", "lse off by 1e-3", "lse NaN", "lse NaN in one row", "z off by half", "z NaN"],
)
def test_a_kernel_that_lies_is_caught(change, said, monkeypatch):
    # gpt2's own code cannot be watched instead: it goes through the interface, and there through the same kernel
    wrong(monkeypatch, change)
    model = tiny_causal_lm("gpt2")
    monkeypatch.setattr(model, "_supports_sdpa", False)
    monkeypatch.setattr("headscope.model.selfcheck._hooks_route", lambda *_: iter(()))
    check = selfcheck(model)
    assert check.support == "unsupported"
    assert said in check.reason
    assert not hasattr(check, "route")


@pytest.mark.parametrize("factor", [1.5, 1.25])
def test_a_coarse_precision_excuses_no_more_than_a_tenth_of_the_output(factor, monkeypatch):
    # bfloat16's tolerance is 0.05, a hundredfold 5: past the largest output. z * 1.25 moves a quarter of what z writes.
    wrong(monkeypatch, lambda z, lse: (z * factor, lse))
    monkeypatch.setattr("headscope.model.selfcheck._hooks_route", lambda *_: iter(()))
    check = selfcheck(tiny_causal_lm("gpt2").to(torch.bfloat16))
    assert (check.support, hasattr(check, "route")) == ("unsupported", False)


def test_a_small_difference_is_degraded_and_stated(monkeypatch):
    # tolerance 1e-4 of the largest output, unsupported from 1e-2; our z is the mix, the model's own is a little more
    eager = modeling_gpt2.eager_attention_forward

    def own(*args, **named):
        z, pattern = eager(*args, **named)
        return z * 1.001, pattern

    monkeypatch.setattr(modeling_gpt2, "eager_attention_forward", own)
    monkeypatch.setattr("headscope.model.selfcheck._hooks_route", lambda *_: iter(()))
    check = selfcheck(tiny_causal_lm("gpt2"))
    assert check.support == "degraded"
    assert 1e-4 < check.max_abs_diff < 0.1
    assert check.reason == f"its output through our attention differs from its own by {check.max_abs_diff:.2g}"


def test_where_our_kernel_lies_the_family_s_own_patterns_are_left(monkeypatch):
    wrong(monkeypatch, lambda z, lse: (z * 1.5, lse))
    check = selfcheck(tiny_causal_lm("gpt2"))
    assert (check.support, check.route.path, check.route.implementation) == ("degraded", "hooks", "eager")
    assert check.max_abs_diff == 0.0


def test_attention_half_outside_the_interface_is_not_read_through_it(monkeypatch):
    # one layer's attention is replaced by code of its own
    model = tiny_causal_lm("llama")

    class Own(nn.Module):
        def __init__(self, replaced):
            super().__init__()
            self.qkv, self.o_proj = nn.Linear(64, 192), replaced.o_proj

        def forward(self, hidden_states, **_):
            q, k, v = self.qkv(hidden_states).unflatten(-1, (4, 48)).transpose(1, 2).chunk(3, dim=-1)
            n = hidden_states.shape[1]
            logits = (q @ k.mT).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
            z = (torch.softmax(logits, dim=-1) @ v).transpose(1, 2).flatten(2)
            return self.o_proj(z), None

    own = Own(model.model.layers[1].self_attn)
    own.o_proj = nn.Linear(64, 64)
    model.model.layers[1].self_attn = own
    check = selfcheck(model)
    assert (check.support, check.route.path) == ("exact", "module")
    assert check.heads == {0: 4, 1: 4}


# What it leaves, and what it says about layers


def test_the_check_is_the_same_every_time_and_draws_nothing(checked):
    model, first = checked("llama")
    state = torch.get_rng_state()
    assert selfcheck(model) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_the_input_is_long_enough_for_the_windows_of_tiny_models_only():
    # a stated limit: a window of more than 17 tokens does not bite during the check
    assert N_TOKENS == 17


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (["model.layers.0.self_attn", "model.layers.1.self_attn"], [0, 1]),
        (["model.layers.3.self_attn", "model.layers.7.self_attn"], [3, 7]),  # a hybrid: its other layers count
        (["model.layers.10.self_attn", "model.layers.2.self_attn"], [10, 2]),
        (["h.0.attn", "h.1.attn"], [0, 1]),
        (["a.layers.0.attn", "a.layers.1.attn", "b.layers.0.attn", "b.layers.2.attn"], [0, 1, 2, 4]),  # two stacks
        (["first.attn", "second.attn"], [0, 1]),  # no numbers: the order of calls
        (["layers.0.attn", "layers.1.attn", "layers.0.attn"], [0, 1]),  # a loop: each module once
        (["model.layers.0.experts.5.attn"], [0]),  # the first number is the layer
    ],
)
def test_layer_numbers(names, layers):
    numbers = layer_numbers(names)
    assert [numbers[name] for name in dict.fromkeys(names)] == layers


def test_a_wrapped_model_is_seen_under_its_longer_names(checked):
    # a headless model and the one that holds it number layers alike
    model = tiny_causal_lm("llama")
    assert list(selfcheck(model).route.layers.values()) == list(selfcheck(model.model).route.layers.values()) == [0, 1]


def test_copies_are_checked_alike(checked):
    model, check = checked("llama")
    assert selfcheck(copy.deepcopy(model)).support == check.support
    headless = AutoModel.from_config(copy.deepcopy(model.config)).eval()
    assert selfcheck(headless).support == "exact"
