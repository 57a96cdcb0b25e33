"""How many parameters a head holds, counted by hand for families whose biases differ."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.tiny import tiny_causal_lm
from benchmarks.written import Written
from headscope.errors import UnsupportedModel
from headscope.evidence.params.measure import count_parameters


@pytest.mark.parametrize(
    ("family", "n_biases"),
    [
        ("gpt2", 3),  # fused Q, K and V, and O
        ("qwen2", 3),  # Q, and under grouped queries K and V; none on O
        ("persimmon", 3),  # the norms of q and k have biases of their own, which are no head's
        ("whisper", 2),  # Q, V and O, as many as Q, K and V would be
    ],
)
def test_biases_are_those_of_q_k_and_v(family, n_biases):
    # d_model 64, d_head 16: 4 * 64 * 16 = 4,096 weights, and 16 biases for each of Q, K and V that has them
    count = count_parameters(tiny_causal_lm(family))
    assert (count.per_head, count.per_head_with_bias) == (4096, 4096 + 16 * n_biases)


def test_biases_that_belong_to_no_head_are_refused():
    # Q and V with a bias, K without: 64 + 32 = 96 numbers for 4 query heads on 2 KV heads
    model = tiny_causal_lm("qwen2")
    for layer in model.model.layers:
        layer.self_attn.k_proj.register_parameter("bias", None)
    with pytest.raises(UnsupportedModel, match=r"layer 0 of .* \(qwen2\) has 96 biases, which are not those of Q, K"):
        count_parameters(model)


def test_weights_that_belong_to_no_head_are_refused():
    # Of GPT-2's 4 heads of width 16 in 64: 64 x 192 for Q, K and V and 64 x 64 for O, 16,384; and 9 more.
    model = tiny_causal_lm("gpt2")
    model.transformer.h[0].attn.register_parameter("more", nn.Parameter(torch.zeros(3, 3)))
    with pytest.raises(UnsupportedModel, match=r"layer 0 of .* holds 16,393 attention weights, not the 16,384 of"):
        count_parameters(model)


def test_heads_whose_queries_and_keys_are_hidden_are_not_counted():
    with pytest.raises(UnsupportedModel, match="hides its queries and keys, so a head's parameters cannot be counted"):
        count_parameters(Written().eval())


def test_counting_leaves_no_hook():
    model = tiny_causal_lm("gpt2")
    count_parameters(model)
    assert not any(part._forward_hooks for part in model.modules() if isinstance(part, nn.Module))
