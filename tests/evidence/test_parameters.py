"""How many parameters a head holds, counted by hand for families whose biases differ."""

from __future__ import annotations

import pytest
from torch import nn

from benchmarks.tiny import tiny_causal_lm
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


def test_counting_leaves_no_hook():
    model = tiny_causal_lm("gpt2")
    count_parameters(model)
    assert not any(part._forward_hooks for part in model.modules() if isinstance(part, nn.Module))
