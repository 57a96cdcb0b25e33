"""Single probabilities against the whole softmax."""

from __future__ import annotations

import math

import pytest
import torch
from pytest import approx

from headscope.model import attention as attention_module
from headscope.model.attention import Attention, Scores
from headscope.model.kernels import AttentionSpec, additive, attend, repeat_heads


def seen(q, k, v, rule, kernel=None):
    """What a visitor of a layer with these vectors is given."""
    z, lse, used = attend(q, k, v, rule, kernel)
    scores = Scores(q=q, k=k, v=v, rule=rule, lse=lse)
    return Attention(layer=0, call=0, z=z.transpose(1, 2), kernel=used, scores=scores)


def softmax(q, k, rule, allowed):
    """Probabilities in float64, from minus infinity at what is not allowed; rows without keys are 0."""
    logits = q.double() @ repeat_heads(k, q.shape[1]).double().mT * rule.scale
    if rule.softcap is not None:
        logits = rule.softcap * torch.tanh(logits / rule.softcap)
    if rule.bias is not None:
        logits = logits + rule.bias.double()
    logits = logits.masked_fill(~allowed, float("-inf"))
    if rule.sinks is not None:
        sinks = rule.sinks.double()[..., None].expand(*logits.shape[:-1], 1)
        return torch.softmax(torch.cat([logits, sinks], dim=-1), dim=-1)[..., :-1]
    return torch.softmax(logits, dim=-1).nan_to_num(0.0)


def vectors(heads=4, kv_heads=2, n=7, d=8, dtype=torch.float32):
    return 2 * torch.randn(2, heads, n, d, dtype=dtype), *(
        torch.randn(2, kv_heads, n, d, dtype=dtype) for _ in range(2)
    )


def everywhere(n=7, batch=2):
    """Every (batch, query, key), in row-major order."""
    return torch.cartesian_prod(torch.arange(batch), torch.arange(n), torch.arange(n)).unbind(1)


CAUSAL = torch.ones(7, 7, dtype=torch.bool).tril().expand(2, 1, 7, 7)
PADDED = CAUSAL.clone()
PADDED[0, :, :, :3] = False  # the first prompt has three tokens of padding: its queries 0, 1, 2 see nothing
WINDOW = CAUSAL & torch.ones(7, 7, dtype=torch.bool).triu(-2)  # each token and the two before it

RULES = {
    "causal": (CAUSAL, lambda: {"causal": True}),
    "soft-cap": (CAUSAL, lambda: {"causal": True, "softcap": 1.5}),
    "left padding": (PADDED, lambda: {"causal": False, "bias": additive(PADDED, torch.float32)}),
    "sliding window": (WINDOW, lambda: {"causal": False, "bias": additive(WINDOW, torch.float32)}),
    "sinks per head": (CAUSAL, lambda: {"causal": True, "sinks": torch.randn(1, 4, 1)}),
    "sinks per row": (
        WINDOW,
        lambda: {"causal": False, "bias": additive(WINDOW, torch.float32), "sinks": torch.randn(2, 4, 7)},
    ),
    "bias per head": (CAUSAL, lambda: {"causal": True, "bias": torch.randn(1, 4, 7, 7)}),
    "bias per key": (CAUSAL, lambda: {"causal": True, "bias": torch.randn(1, 4, 1, 7)}),
}


@pytest.mark.parametrize(
    ("name", "kernel"), [(name, "tiled") for name in RULES] + [(name, "flash") for name in RULES if name != "soft-cap"]
)
def test_probabilities_and_pattern_are_the_softmax(name, kernel):
    allowed, options = RULES[name]
    rule = AttentionSpec(scale=0.3, **options())
    q, k, v = vectors()
    wanted = softmax(q, k, rule, allowed)
    attention = seen(q, k, v, rule, kernel)
    torch.testing.assert_close(attention.pattern().double(), wanted, atol=1e-6, rtol=0)
    single = attention.probabilities(*everywhere())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), wanted.permute(0, 2, 3, 1).reshape(-1, 4), atol=1e-6, rtol=0)


def test_a_row_of_padding_attends_nowhere_rather_than_everywhere_at_once():
    # its lse is the most negative number of float32, so that exp(logit - lse) would be 1 at every key
    rule = AttentionSpec(scale=1.0, causal=False, bias=additive(PADDED, torch.float32))
    for kernel in ("tiled", "flash"):
        attention = seen(*vectors(), rule, kernel)
        assert attention.pattern()[0, :, :3].abs().max() == 0
        assert attention.probabilities(*(torch.tensor([x]) for x in (0, 1, 1))).tolist() == [[0.0] * 4]
        assert attention.pattern()[1].sum(-1).flatten().tolist() == approx([1.0] * 28, abs=1e-5)


def test_a_mask_of_minus_infinity_gives_zeros_and_no_nan():
    bias = torch.zeros(1, 1, 3, 3).masked_fill(
        torch.ones(3, 3, dtype=torch.bool).triu(), float("-inf")
    )  # row 0: nothing
    q, k, v = vectors(n=3)
    attention = seen(q, k, v, AttentionSpec(scale=1.0, causal=False, bias=bias), "tiled")
    assert attention.pattern()[:, :, 0].tolist() == torch.zeros(2, 4, 3).tolist()
    assert attention.probabilities(*everywhere(3)).isfinite().all()


def test_the_arithmetic_of_one_probability():
    # query 1, keys 0 and 1, scale 1: logits 1*2 = 2 and 1*1 = 1 -> p(0) = e^2 / (e^2 + e^1) = 1 / (1 + 1/e)
    q, k = torch.ones(1, 1, 2, 1), torch.tensor([2.0, 1.0]).reshape(1, 1, 2, 1)
    attention = seen(q, k, k, AttentionSpec(scale=1.0, causal=True))
    place = [torch.tensor([x]) for x in (0, 1, 0)]
    assert attention.probabilities(*place).item() == approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("targets", [1, 7, 97, 98, 1000])
def test_chunks_change_nothing(monkeypatch, targets):
    # 2 * 7 * 7 = 98 places
    q, k, v = vectors()
    attention = seen(q, k, v, AttentionSpec(scale=0.3, causal=True))
    whole = attention.probabilities(*everywhere())
    monkeypatch.setattr(attention_module, "CHUNK", targets * q.shape[1] * q.shape[3])
    assert torch.equal(attention.probabilities(*everywhere()), whole)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_queries_of_16_bits_are_scored_as_if_their_keys_were_repeated_and_wide(kv_heads):
    q, k, v = (part.bfloat16() for part in vectors(kv_heads=kv_heads))
    rule = AttentionSpec(scale=0.3, causal=True)
    # Numbers of 16 bits are numbers of 32 bits: nothing is rounded but the sums.
    wide = [repeat_heads(part, q.shape[1]).float() for part in (q, k, v)]
    given, wanted = (seen(*parts, rule, "tiled").probabilities(*everywhere()) for parts in ((q, k, v), wide))
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, wanted, atol=1e-6, rtol=1e-5)


def test_no_targets_give_an_empty_answer():
    none = torch.zeros(0, dtype=torch.long)
    assert seen(*vectors(), AttentionSpec(scale=1.0, causal=True)).probabilities(none, none, none).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_scored_in_float32(dtype):
    q, k, v = vectors(dtype=dtype)
    attention = seen(q, k, v, AttentionSpec(scale=0.3, causal=True))
    single = attention.probabilities(*everywhere())
    assert single.dtype == torch.float32
    # the same halves, multiplied exactly
    wanted = softmax(q, k, AttentionSpec(scale=0.3, causal=True), CAUSAL)
    torch.testing.assert_close(single.double(), wanted.permute(0, 2, 3, 1).reshape(-1, 4), atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", RULES)
def test_allowed_says_what_the_mask_says(name):
    allowed, options = RULES[name]
    attention = seen(*vectors(), AttentionSpec(scale=0.3, **options()), "tiled")
    open_, n_seen = attention.allowed(*everywhere())
    wanted = allowed.expand(2, 1, 7, 7)[:, 0]
    assert open_.tolist() == wanted.flatten().float().tolist()
    assert n_seen.tolist() == wanted.sum(-1, keepdim=True).expand(2, 7, 7).flatten().float().tolist()


def test_allowed_counts_keys_before_the_query_where_padding_and_causality_meet():
    # keys 0, 1 are padding and the rule is causal: query 3 sees keys 2 and 3, not min(5 open keys, 4)
    bias = additive(torch.tensor([[[[False, False, True, True, True, True, True]]]]), torch.float32)
    attention = seen(*vectors(), AttentionSpec(scale=1.0, causal=True, bias=bias), "tiled")
    place = torch.tensor([0, 0]), torch.tensor([3, 3]), torch.tensor([1, 2])
    assert [x.tolist() for x in attention.allowed(*place)] == [[0.0, 1.0], [2.0, 2.0]]


def test_a_model_s_own_pattern_answers_the_same_questions():
    pattern = torch.softmax(torch.randn(2, 4, 7, 7).masked_fill(~CAUSAL, float("-inf")), dim=-1)
    attention = Attention(layer=3, call=1, z=torch.zeros(2, 7, 4, 8), kernel="own", own_pattern=pattern)
    assert attention.n_heads == 4
    assert attention.pattern() is pattern
    single = attention.probabilities(*everywhere())
    assert torch.equal(single.reshape(2, 7, 7, 4).permute(0, 3, 1, 2), pattern)
    open_, n_seen = attention.allowed(*everywhere())
    assert torch.equal(open_.reshape(2, 7, 7).bool(), CAUSAL[:, 0])
    assert n_seen.reshape(2, 7, 7)[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_model_s_own_half_precision_pattern_is_widened():
    own = torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16)
    attention = Attention(layer=0, call=0, z=torch.zeros(1, 2, 1, 4), kernel="own", own_pattern=own)
    assert attention.probabilities(*(torch.tensor([0]),) * 3).dtype == torch.float32


def test_gradients_of_a_probability_are_the_softmax_s_or_none():
    q, k, v = vectors(dtype=torch.float64)
    q.requires_grad_(True)
    rule = AttentionSpec(scale=0.3, causal=True)
    place = [torch.tensor([x]) for x in (1, 5, 2)]
    (wanted,) = torch.autograd.grad(softmax(q, k, rule, CAUSAL)[1, :, 5, 2].sum(), q)
    single = seen(q, k, v, rule, "tiled").probabilities(*place)
    (given,) = torch.autograd.grad(single.sum(), q)
    torch.testing.assert_close(given, wanted, atol=1e-12, rtol=0)
    # flash gives none to lse; half a gradient would be wrong
    attention = seen(q, k, v, rule, "flash")
    assert attention.z.requires_grad
    assert not attention.probabilities(*place).requires_grad
    assert not attention.pattern().requires_grad
