"""A model that rounding moves is not refused for a difference that rounding makes; an error still is."""

from __future__ import annotations

import copy

import pytest
import torch
from pytest import approx
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss import modeling_gpt_oss

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.model.attention import Scores
from headscope.model.kernels import AttentionSpec
from headscope.model.rounding import moved_by_rounding, of_logits
from headscope.planted.handbuilt import DECOYS, handbuilt
from tests.running import selfcheck


def undecided(n_layers=2):
    """In bfloat16; the router's rows are pairs a last bit apart, so that rounding chooses between two experts."""
    torch.manual_seed(0)
    config = GptOssConfig(
        num_hidden_layers=n_layers, hidden_size=64, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, num_local_experts=8, num_experts_per_tok=1, vocab_size=200, pad_token_id=None, sliding_window=16,
    )  # fmt: skip
    model = GptOssForCausalLM(config).eval().to(torch.bfloat16)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for layer in model.model.layers:
            router, experts = layer.mlp.router, layer.mlp.experts
            router.bias.zero_()
            router.weight[1::2] = router.weight[::2] * (1 + 2**-7 * torch.randn(4, 64)).to(torch.bfloat16)
            experts.down_proj.mul_(4)
            experts.down_proj[1::2] *= -1
    return model


def test_an_undecided_router_is_degraded_in_half_precision_and_exact_in_float32():
    model = undecided()
    check = hs.load(model).check
    assert check.support == "degraded"
    assert "rounding its embedding otherwise moves its own by" in check.reason
    assert check.unread is None  # what rounding moves is not mixing
    assert check.max_abs_diff > 5e-2  # of an output of about 1: more than bfloat16's tolerance
    # The same weights, with 16 more bits for each number in between.
    assert hs.load(copy.deepcopy(model).float()).check.support == "exact"


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "lfm2_moe", "gpt_oss"])
def test_mixtures_of_experts_keep_their_queries_and_keys_in_half_precision(family):
    check = selfcheck(tiny_causal_lm(family).to(torch.bfloat16))
    assert check.support in ("exact", "degraded")
    assert "own" not in check.kernels


def test_wrong_attention_is_refused_although_rounding_moves_the_worst_token_as_far(monkeypatch):
    # The model's own code gives three times the mix. One layer, so that few tokens are decided by rounding and the
    # median token, which rounding leaves alone, tells.
    eager = modeling_gpt_oss.eager_attention_forward

    def own(*args, **named):
        z, pattern = eager(*args, **named)
        return z * 3, pattern

    monkeypatch.setattr(modeling_gpt_oss, "eager_attention_forward", own)
    assert selfcheck(undecided(n_layers=1)).support == "unsupported"


def test_only_a_difference_like_that_of_rounding_is_explained():
    # Of three tokens rounding never moves two, which are 0, and the third by its last bit: bfloat16 has 0.5 between
    # numbers at 100. Twice that may be explained, in the worst token; in the median one nothing above the limit.
    embedding = torch.nn.Embedding(2, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        embedding.weight[:] = torch.tensor([[0.0], [100.0]])

        def run():
            return embedding(torch.tensor([[0, 0, 1]]))

        own = run()
        for ours, moved in [((0, 0, 100.5), 0.5), ((0, 0, 101), 0.5), ((0, 0, 102), 0), ((0.5, 0.5, 100), 0)]:
            assert moved_by_rounding(embedding, run, own, torch.tensor([ours])[..., None], limit=0.01) == moved, ours


def test_large_logits_are_rounded_more_and_a_masked_row_excuses_nothing():
    # float32 has 2**-23 between numbers at 1. A probability exp(x - lse) with x of 1,000 is off by 1,000 times that.
    def scores(*lse):
        q = torch.zeros(1, 1, len(lse), 4)
        return Scores(q=q, k=q, v=q, rule=AttentionSpec(scale=1.0, causal=True), lse=torch.tensor([[lse]]))

    assert of_logits(scores(1.0, -1000.0)) == approx(1000 * 2**-23)
    assert of_logits(scores(2.0, float("-inf"), -3e38, -1e9)) == approx(2 * 2**-23)
    assert of_logits(scores(float("-inf"))) == 0.0


def test_a_circuit_with_logits_in_the_thousands_is_exact():
    # Its probabilities were off by 1.1e-4 on one processor, where 1e-4 is allowed to logits near 1.
    built = handbuilt(copying="redundant", decoys=DECOYS, seed=13, n_layers=3)
    assert selfcheck(built.model).support == "exact"
