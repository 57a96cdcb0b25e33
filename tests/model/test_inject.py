"""Injected streams: the model's own queries and keys where the stream is a prompt's, whatever the family."""

from __future__ import annotations

import functools

import pytest
import torch

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import UnsupportedModel
from headscope.model import inject
from headscope.model.inject import queries_and_keys
from headscope.model.replay import decoder_layers
from tests.running import forward

FAMILIES = [
    "gpt2",  # learned positions, added before the first layer
    "llama",  # rotary; 4 query heads share 2 KV heads
    "qwen3",  # query-key norm
    "gemma2",  # norms on both sides, soft-cap
    "gpt_neox",  # fused q, k, v; part of each head is turned
    "deepseek_v3",  # latent attention
    "qwen3_next",  # layer 0 is linear attention
]


@functools.cache
def loaded(family):
    return hs.load(tiny_causal_lm(family))


@torch.no_grad()
def streams(model, layer, tokens):
    """What enters a decoder layer, by the model's own code: [prompt position d_model]."""
    seen = []

    def keep(module, arguments, named):
        seen.append(arguments[0] if arguments else named["hidden_states"])

    handle = decoder_layers(model)[layer].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        model.hf(input_ids=tokens, use_cache=False)
    finally:
        handle.remove()
    return seen[0]


def own(model, layer, tokens):
    """q and k of a layer on a prompt: [prompt head position d_qk]."""
    seen = []

    def visit(attention):
        if attention.layer == layer:
            seen.append((attention.scores.q.clone(), attention.scores.k.clone()))

    forward(model.hf, model.check.route, tokens, visit)
    return seen[0]


@pytest.mark.parametrize("position", [0, 1, 17])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_of_a_prompt_gives_what_the_model_computes_there(family, position, tokens):
    model = loaded(family)
    for layer in (min(model.check.heads), max(model.check.heads)):
        q, k = own(model, layer, tokens)
        vectors = streams(model, layer, tokens)[:, position]
        before = vectors.clone()
        given_q, given_k = queries_and_keys(model, layer, vectors, position)
        assert given_q.shape == (2, q.shape[1], q.shape[3])
        assert given_k.shape == (2, k.shape[1], k.shape[3])
        torch.testing.assert_close(given_q, q[:, :, position], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(given_k, k[:, :, position], atol=1e-5, rtol=1e-5)
        assert torch.equal(vectors, before)
    # and positions are not all alike: a rotary model turns what it reads
    if family == "llama" and position:
        assert (queries_and_keys(model, 1, vectors, position + 1)[0] - given_q).abs().max() > 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_vectors_do_not_influence_each_other_and_batches_do_not_matter(family, monkeypatch):
    model = loaded(family)
    vectors = torch.randn(7, 64)
    q, k = queries_and_keys(model, 1, vectors, 3)
    for row in range(7):
        alone = queries_and_keys(model, 1, vectors[row : row + 1], 3)
        torch.testing.assert_close(alone, (q[row : row + 1], k[row : row + 1]), atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(inject, "BATCH_NUMBERS", 3 * 4 * 64)  # three vectors at a time
    torch.testing.assert_close(queries_and_keys(model, 1, vectors, 3), (q, k), atol=1e-5, rtol=1e-5)


def test_size_does_not_matter_where_a_norm_comes_first():
    vectors = torch.randn(4, 64)
    large = queries_and_keys(loaded("llama"), 1, 100 * vectors, 2)
    torch.testing.assert_close(large, queries_and_keys(loaded("llama"), 1, vectors, 2), atol=1e-3, rtol=1e-3)


def what_is_in_place(model):
    return [
        (name, "forward" in module.__dict__, list(module._forward_pre_hooks), list(module._forward_hooks))
        for name, module in model.hf.named_modules()
    ]


def test_nothing_is_left_behind_also_after_an_exception(monkeypatch):
    model = hs.load(tiny_causal_lm("llama"))
    before = what_is_in_place(model)
    queries_and_keys(model, 1, torch.randn(2, 64), 3)
    assert what_is_in_place(model) == before
    with pytest.raises(UnsupportedModel, match="layer 1 of .* reads something else than one stream"):
        queries_and_keys(model, 1, torch.randn(2, 60), 3)
    assert what_is_in_place(model) == before
    layer = decoder_layers(model)[1]

    def broken(*arguments, **named):
        raise ZeroDivisionError

    monkeypatch.setattr(layer.self_attn.q_proj, "forward", broken)
    with pytest.raises(ZeroDivisionError):
        queries_and_keys(model, 1, torch.randn(2, 64), 3)
    monkeypatch.undo()
    assert what_is_in_place(model) == before


@pytest.mark.parametrize(
    ("family", "layer", "message"),
    [
        ("mpt", 1, "hides its queries and keys"),
        ("mpt", 0, "hides its queries and keys"),
        ("gemma3n_text", 1, "layer 1 of .* cannot be given a residual stream"),  # cannot be started at a layer
        ("hrm_text", 2, "layer 2 of .* cannot be given a residual stream"),  # runs its first layers six times before
        ("llama", 5, "layer 5 of .* cannot be given a residual stream"),
        ("zamba", 0, "layer 0 of .* cannot be given a residual stream"),
    ],
)
def test_layers_that_cannot_be_asked_are_refused_in_one_line(family, layer, message):
    model = loaded(family)
    before = what_is_in_place(model)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        queries_and_keys(model, layer, torch.randn(2, 64), 3)
    assert "\n" not in str(caught.value)
    assert what_is_in_place(model) == before
