"""A tapped pass against the family's own eager code: same logits, probabilities and edits, and nothing left behind."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from benchmarks.tiny import tiny_causal_lm, tiny_config
from headscope.errors import ArgumentError, ShapeError, UnsupportedModel
from headscope.model import interface, kernels
from tests.running import forward, selfcheck

INTERFACE = (
    "gpt2",  # learned positions, fused query-key-value projection
    "llama",  # grouped queries
    "gpt_neox",  # parallel residual
    "gemma2",  # soft-cap, sliding window
    "gpt_oss",  # sinks
    "deepseek_v3",  # latent attention: values narrower than keys
    "mistral",  # sliding window
    "qwen3",  # query-key norm
    "qwen3_next",  # hybrid with linear attention
    "jamba",  # hybrid with mamba
    "deepseek_v32",  # sparse attention by an indexer
    "inkling_text",  # position bias
    "diffllama",  # attention called twice a layer
    "hrm_text",  # loops over its layers
)
OWN_CODE = {"falcon": "hooks", "mpt": "hooks", "bloom": "module", "gptj": "module"}
FAMILIES = (*INTERFACE, *OWN_CODE)


def nothing(attention):
    return None


def own_output(model, tokens, **options):
    """The family's own eager attention, without us."""
    assert model.config._attn_implementation == "eager"
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False, **options)


def patterns(model, check, tokens, **options):
    """Every call's whole pattern, in order."""
    found = []
    forward(model, check.route, tokens, lambda attention: found.append(attention.pattern()), **options)
    return found


def assert_logits(given, wanted):
    """Within 1e-5 of the largest: rounding, since the tiny models' logits are about 6."""
    torch.testing.assert_close(given, wanted, atol=1e-5 * max(1.0, float(wanted.abs().max())), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_family_s_own_eager_code(family, checked, tokens):
    model, check = checked(family)
    assert check.route.path == OWN_CODE.get(family, "interface")
    visited = []
    ours = forward(model, check.route, tokens, lambda attention: visited.append(attention.layer)).logits
    assert_logits(ours, own_output(model, tokens).logits)
    assert len(visited) == check.route.calls
    assert set(visited) == set(check.heads)


@pytest.mark.parametrize("family", FAMILIES)
def test_putting_z_back_changes_no_bit(family, checked, tokens):
    model, check = checked(family)
    untouched = forward(model, check.route, tokens, nothing).logits
    assert torch.equal(forward(model, check.route, tokens, lambda attention: attention.z.clone()).logits, untouched)


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_are_the_family_s_own(family, checked, tokens):
    model, check = checked(family)
    own = own_output(model, tokens, output_attentions=True).attentions
    ours = patterns(model, check, tokens)
    if family == "diffllama":  # it mixes two halves of the values by one pattern, and calls once for each
        own = [pattern for pattern in own for _ in range(2)]
    assert len(own) == len(ours) == check.route.calls
    for given, wanted in zip(ours, own, strict=True):
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gpt_oss"])
def test_blocks_of_a_window_change_neither_patterns_nor_logits(family, checked, tokens, monkeypatch):
    # 24 tokens, windows of 8: blocks of 4 queries, or tiles of 16, leave keys out, which at 512 they do not.
    model, check = checked(family)
    monkeypatch.setattr(kernels, "BLOCK", 4)
    monkeypatch.setattr(kernels, "TILE_ELEMENTS", 1)
    read, seen = [], kernels.AttentionSpec.seen
    monkeypatch.setattr(kernels.AttentionSpec, "seen", lambda *given: read.append(seen(*given)) or read[-1])
    own = own_output(model, tokens, output_attentions=True)
    for given, wanted in zip(patterns(model, check, tokens), own.attentions, strict=True):
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)
    assert_logits(forward(model, check.route, tokens, nothing).logits, own.logits)
    assert any(first > 0 for first, _ in read)


@pytest.mark.parametrize("family", ["llama", "falcon", "bloom"])
def test_single_probabilities_are_places_of_the_pattern(family, checked, tokens):
    model, check = checked(family)
    batch, query, key = (torch.tensor(x) for x in ([0, 1, 1], [5, 23, 0], [2, 23, 0]))
    seen = []
    forward(
        model,
        check.route,
        tokens,
        lambda attention: seen.append((attention.probabilities(batch, query, key), attention)),
    )
    for single, attention in seen:
        torch.testing.assert_close(single, attention.pattern()[batch, :, query, key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", ["flash", "tiled", "reference"])
def test_every_kernel_gives_the_same_logits(kernel, checked, tokens):
    model, check = checked("gpt_oss")
    used = set()
    ours = forward(model, check.route, tokens, lambda attention: used.add(attention.kernel), kernel=kernel).logits
    assert used == {kernel}
    assert_logits(ours, own_output(model, tokens).logits)


def test_flash_is_refused_where_it_would_drop_the_soft_cap(checked, tokens):
    model, check = checked("gemma2")
    with pytest.raises(ArgumentError, match="kernel='flash' cannot compute this attention"):
        forward(model, check.route, tokens, nothing, kernel="flash")


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_nothing_is_seen_beyond_a_sliding_window(family, checked, tokens):
    # window 8: query 23 sees keys 16..23
    model, check = checked(family)
    sliding = patterns(model, check, tokens)[0]
    assert sliding[:, :, 23, :16].abs().max() == 0
    torch.testing.assert_close(sliding[:, :, 23, 16:].sum(-1), torch.ones(2, 4))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2)])
@pytest.mark.parametrize("family", ["llama", "gpt_oss", "falcon", "bloom"])
def test_short_prompts_and_other_batches(family, shape, checked):
    model, check = checked(family)
    ids = torch.randint(3, 100, shape)
    ours = patterns(model, check, ids)
    assert [tuple(pattern.shape) for pattern in ours] == [(shape[0], 4, shape[1], shape[1])] * check.route.calls
    assert_logits(forward(model, check.route, ids, nothing).logits, own_output(model, ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rows_still_sum_to_one(dtype, tokens):
    model = tiny_causal_lm("llama").to(dtype)
    check = selfcheck(model)
    assert check.support == "exact"
    for pattern in patterns(model, check, tokens):
        assert pattern.dtype == torch.float32
        torch.testing.assert_close(pattern.sum(-1), torch.ones(2, 4, 24), atol=2e-3, rtol=0)


# Where each call belongs


def test_hybrids_count_layers_without_attention(checked):
    model, check = checked("qwen3_next")
    kinds = model.config.layer_types
    assert (
        set(check.heads)
        == {index for index, kind in enumerate(kinds) if kind == "full_attention"}
        != set(range(len(kinds)))
    )


def test_loops_number_their_calls(checked, tokens):
    model, check = checked("hrm_text")
    places = []
    forward(model, check.route, tokens, lambda attention: places.append((attention.layer, attention.call)))
    assert len(places) == len(set(places)) == 16
    for layer in check.heads:
        calls = [call for seen, call in places if seen == layer]
        assert calls == list(range(len(calls)))


# Edits

PROJECTIONS = {
    "llama": "model.layers.{}.self_attn.o_proj",
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gemma2": "model.layers.{}.self_attn.o_proj",
    "bloom": "transformer.h.{}.self_attention.dense",
    "falcon": "transformer.h.{}.self_attention.dense",
}


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", PROJECTIONS)
def test_replacing_one_head_s_z_is_replacing_its_slice_of_the_projection_s_input(family, layer, checked, tokens):
    model, check = checked(family)
    projection = model.get_submodule(PROJECTIONS[family].format(layer))
    width = (projection.weight.shape[0] if family == "gpt2" else projection.in_features) // 4
    noise = torch.randn(2, 24, width)
    own_z = []

    def replace_slice(module, args):
        own_z.append(args[0].reshape(2, 24, 4, width))
        mixed = args[0].clone()
        mixed[..., 2 * width : 3 * width] = noise
        return (mixed,)

    handle = projection.register_forward_pre_hook(replace_slice)
    wanted = own_output(model, tokens).logits
    handle.remove()

    def replace_head(attention):
        if attention.layer != layer:
            return None
        torch.testing.assert_close(attention.z, own_z[0], atol=1e-5, rtol=0)
        z = attention.z.clone()
        z[:, :, 2] = noise
        return z

    given = forward(model, check.route, tokens, replace_head).logits
    assert_logits(given, wanted)
    assert (given - own_output(model, tokens).logits).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_z_of_the_wrong_shape_is_refused_before_it_is_scrambled(family, checked, tokens):
    # [batch head query d_head] has as many numbers as z: reshaped, it would pass silently
    model, check = checked(family)
    message = r"visit returned \[2, 4, 24, \d+\] for layer 0; it needs the shape of z, \[2, 24, 4, \d+\]"
    with pytest.raises(ShapeError, match=message):
        forward(model, check.route, tokens, lambda attention: attention.z.transpose(1, 2))


def test_an_edit_of_another_dtype_is_cast(checked, tokens):
    model, check = checked("llama")
    zeros = forward(model, check.route, tokens, lambda attention: torch.zeros_like(attention.z)).logits
    wide = forward(model, check.route, tokens, lambda attention: torch.zeros_like(attention.z).double()).logits
    assert torch.equal(zeros, wide)


# Stopping early


def count_calls(module):
    calls = []
    return calls, module.register_forward_hook(lambda *_: calls.append(1))


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_stopping_at_the_last_attention_skips_last_mlp_and_head(family, checked, tokens):
    model, check = checked(family)
    layers = model.model.layers if family == "llama" else model.transformer.h
    whole = patterns(model, check, tokens)
    counted = [count_calls(module) for module in (layers[0].mlp, layers[1].mlp, model.lm_head)]
    try:
        early = []
        out = forward(model, check.route, tokens, lambda a: early.append(a.pattern()), stop_at_last=True)
        assert out is None
        assert [len(calls) for calls, _ in counted] == [1, 0, 0]
        assert all(torch.equal(x, y) for x, y in zip(early, whole, strict=True))
        forward(model, check.route, tokens, nothing)
        assert [len(calls) for calls, _ in counted] == [2, 1, 1]
    finally:
        for _, handle in counted:
            handle.remove()


@pytest.mark.parametrize("family", ["hrm_text", "diffllama", "qwen3_next"])
def test_stopping_comes_after_the_last_call_not_the_last_layer(family, checked, tokens):
    model, check = checked(family)
    whole, early = patterns(model, check, tokens), patterns(model, check, tokens, stop_at_last=True)
    assert len(early) == len(whole) == check.route.calls
    assert all(torch.equal(x, y) for x, y in zip(early, whole, strict=True))


# The model is left as it was


def state(model):
    """Everything that a pass might leave changed, in values that can be compared."""
    configs = [model.config, *(module.config for module in model.modules() if hasattr(module, "config"))]
    return {
        "implementations": [config._attn_implementation for config in configs],
        "training": {name: module.training for name, module in model.named_modules()},
        "requires_grad": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "grad": {name: None if weight.grad is None else id(weight.grad) for name, weight in model.named_parameters()},
        "versions": {name: weight._version for name, weight in model.named_parameters()},
        "buffers": {name: (id(buffer), buffer._version) for name, buffer in model.named_buffers()},
        "hooks": {
            name: [list(getattr(module, kind)) for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for name, module in model.named_modules()
        },
        "attributes": {name: set(vars(module)) for name, module in model.named_modules()},
        "attention registry": dict(AttentionInterface._global_mapping),
        "mask registry": dict(AttentionMaskInterface._global_mapping),
        "gradients": torch.is_grad_enabled(),
        "random": torch.get_rng_state().tolist(),
    }


def lived_in(family):
    """A model whose owner is in the middle of something."""
    model = tiny_causal_lm(family)
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    model.train()
    for index, module in enumerate(model.modules()):
        module.training = index % 3 != 0
    weights = list(model.parameters())
    weights[0].requires_grad_(False)
    weights[1].grad = torch.ones_like(weights[1])
    model.lm_head.register_forward_hook(lambda *_: None)
    return model


class _Boom(Exception):
    pass


def boom(attention):
    if attention.layer == 1:
        raise _Boom


@pytest.mark.parametrize("family", ["llama", "falcon", "bloom"])
def test_nothing_is_left_behind(family, tokens):
    model = lived_in(family)
    before = state(model)
    check = selfcheck(model)
    assert state(model) == before
    for options in ({}, {"stop_at_last": True}, {"grad": True}):
        forward(model, check.route, tokens, nothing, **options)
        assert state(model) == before
        with pytest.raises(_Boom):
            forward(model, check.route, tokens, boom, **options)
        assert state(model) == before
    with pytest.raises(IndexError):  # the model's own code fails
        forward(model, check.route, tokens + 1000, nothing)
    assert state(model) == before


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_training_works_after_a_scan(family, tokens):
    def one_step(model):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with torch.random.fork_rng():
            torch.manual_seed(1)
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return [weight.detach().clone() for weight in model.parameters()]

    untouched, scanned = tiny_causal_lm(family), tiny_causal_lm(family)
    check = selfcheck(scanned)
    kept = []
    kept.append(forward(scanned, check.route, tokens, lambda attention: kept.append(attention.z)).logits)
    forward(scanned, check.route, tokens, nothing, stop_at_last=True)
    assert not any(tensor.is_inference() for tensor in kept)  # autograd would refuse them for ever
    assert not any(tensor.is_inference() for tensor in scanned.state_dict().values())
    assert not any(buffer.is_inference() for buffer in scanned.buffers())
    assert all(torch.equal(x, y) for x, y in zip(one_step(untouched), one_step(scanned), strict=True))


def test_a_model_in_training_mode_is_seen_without_dropout(tokens):
    model = LlamaForCausalLM(copy.deepcopy(tiny_config("llama")))
    model.config.attention_dropout = 0.9
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    check = selfcheck(model.train())
    assert check.support == "exact"
    first, second = (patterns(model, check, tokens) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    assert model.training


# Gradients


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "inkling_text", "falcon", "bloom"])
def test_gradients_are_those_of_the_family_s_own_code(family, tokens):
    # sinks and learned position biases need a kernel that is differentiable in them
    model = tiny_causal_lm(family)
    check = selfcheck(model)

    def gradients(run):
        model.zero_grad()
        run().logits.pow(2).mean().backward()
        return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}

    wanted = gradients(lambda: model(input_ids=tokens, use_cache=False))
    given = gradients(lambda: forward(model, check.route, tokens, nothing, grad=True))
    assert given.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, atol=1e-4 * float(gradient.abs().max()) + 1e-9, rtol=0)


def test_no_graph_is_built_unless_asked_for(checked, tokens):
    model, check = checked("llama")
    assert not forward(model, check.route, tokens, nothing).logits.requires_grad
    assert forward(model, check.route, tokens, nothing, grad=True).logits.requires_grad


def test_the_gradient_of_a_head_s_z_is_that_of_the_projection_s_input(tokens):
    model = tiny_causal_lm("llama")
    check = selfcheck(model)
    ours, own = [], []

    def keep(attention):
        attention.z.retain_grad()
        ours.append(attention.z)

    forward(model, check.route, tokens, keep, grad=True).logits[0, -1, 7].backward()

    def keep_input(module, args):
        args[0].retain_grad()
        own.append(args[0])

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(keep_input)
    model(input_ids=tokens, use_cache=False).logits[0, -1, 7].backward()
    for given, wanted in zip(ours, own, strict=True):
        assert wanted.grad.abs().max() > 1e-3
        torch.testing.assert_close(given.grad.flatten(2), wanted.grad, atol=1e-6, rtol=1e-4)


# Two models at once


def assert_same(given, wanted):
    for x, y in zip(given, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("outer", "inner"), [("llama", "gpt2"), ("bloom", "falcon"), ("falcon", "llama"), ("llama", "bloom")]
)
def test_a_visit_may_run_another_model(outer, inner, checked, tokens):
    (first, first_check), (second, second_check) = checked(outer), checked(inner)
    wanted, wanted_inside = patterns(first, first_check, tokens), patterns(second, second_check, tokens)
    plain = own_output(second, tokens).logits
    found = []

    def visit(attention):
        found.append(attention.pattern())
        assert_same(patterns(second, second_check, tokens), wanted_inside)
        patterns(second, second_check, tokens, stop_at_last=True)
        assert torch.equal(own_output(second, tokens).logits, plain)

    forward(first, first_check.route, tokens, visit)
    assert_same(found, wanted)


def twins():
    """Two models that share one config object."""
    config = tiny_config("llama")
    models = [LlamaForCausalLM(config).eval() for _ in range(2)]
    for weight in (weight for model in models for weight in model.parameters()):
        torch.nn.init.normal_(weight, std=0.3)
    assert models[0].config is models[1].config
    return [(model, selfcheck(model)) for model in models]


def test_a_visit_may_run_a_model_with_the_same_config(tokens):
    (first, first_check), (second, second_check) = twins()
    wanted, wanted_inside = patterns(first, first_check, tokens), patterns(second, second_check, tokens)
    found = []

    def visit(attention):
        found.append(attention.pattern())
        assert_same(patterns(second, second_check, tokens), wanted_inside)

    forward(first, first_check.route, tokens, visit)
    assert_same(found, wanted)
    assert first.config._attn_implementation == "eager"


def in_threads(jobs, rounds=4):
    """Run all jobs at once, several times; a thread that hangs or fails fails the test."""
    errors = []
    start = threading.Barrier(len(jobs))

    def work(job):
        try:
            start.wait()
            for _ in range(rounds):
                job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(job,), daemon=True) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


def agrees(model, check, tokens):
    wanted = patterns(model, check, tokens)
    return lambda: assert_same(patterns(model, check, tokens), wanted)


@pytest.mark.parametrize("pair", [("llama", "gpt2"), ("bloom", "falcon"), ("bloom", "llama")])
def test_two_threads_on_two_models(pair, checked, tokens):
    in_threads([agrees(*checked(family), tokens) for family in pair])


def test_two_threads_on_one_model_and_on_two_of_one_config(tokens):
    first, second = twins()
    in_threads([agrees(*first, tokens), agrees(*first, tokens), agrees(*second, tokens), lambda: selfcheck(second[0])])
    assert first[0].config._attn_implementation == "eager"
    assert not any(name.startswith("headscope") for name in AttentionInterface._global_mapping)


def test_two_threads_whose_visits_run_the_other_s_model_do_not_wait_for_each_other(checked, tokens):
    first, second = checked("llama"), checked("gpt2")

    def crossed(outer, inner):
        return lambda: forward(outer[0], outer[1].route, tokens, lambda attention: patterns(*inner, tokens) and None)

    in_threads([crossed(first, second), crossed(second, first)])


# What the self-check did not see


def test_an_unknown_argument_in_a_later_input_is_an_error_of_ours(checked, tokens, monkeypatch):
    model, check = checked("mistral")
    monkeypatch.setattr(interface, "_WITHOUT_MEANING_HERE", interface._WITHOUT_MEANING_HERE - {"sliding_window"})
    with pytest.raises(UnsupportedModel, match=r"argument we do not know \(sliding_window\)") as caught:
        forward(model, check.route, tokens, nothing)
    assert "\n" not in str(caught.value)


def test_a_module_that_the_self_check_did_not_reach_is_an_error_of_ours(tokens):
    model = tiny_causal_lm("llama")
    check = selfcheck(model)
    model.model.layers[1].self_attn = copy.deepcopy(model.model.layers[1].self_attn)
    route = copy.copy(check.route)
    object.__setattr__(route, "layers", {"model.layers.0.self_attn": 0})
    with pytest.raises(
        UnsupportedModel, match="reaches a LlamaAttention that the self-check's input did not"
    ) as caught:
        forward(model, route, tokens, nothing)
    assert "\n" not in str(caught.value)
