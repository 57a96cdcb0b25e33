"""Every kernel against the definition, written out row by row in float64."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from torch.utils._python_dispatch import TorchDispatchMode

from headscope.errors import ArgumentError
from headscope.model import kernels
from headscope.model.kernels import (
    AttentionSpec,
    additive,
    attend,
    flash,
    flash_applies,
    pick,
    reference,
    repeat_heads,
    tiled,
)


def written_out(q, k, v, *, scale, causal=False, allowed=None, bias=None, softcap=None, sinks=None):
    """(z, lse) of the module's formula: one row at a time, only over keys that are allowed, sinks as one more logit."""
    q, k, v = q.double(), k.double(), v.double()
    n_batch, n_heads, n_query, _ = q.shape
    n_key, group = k.shape[2], n_heads // k.shape[1]
    z, lse = torch.zeros(*q.shape[:3], v.shape[-1], dtype=torch.double), torch.zeros(q.shape[:3], dtype=torch.double)
    for b in range(n_batch):
        for h in range(n_heads):
            for i in range(n_query):
                logits, values = [], []
                for j in range(n_key):
                    if (causal and j > i) or (allowed is not None and not allowed[b, i, j]):
                        continue
                    logit = float(q[b, h, i] @ k[b, h // group, j]) * scale
                    if softcap is not None:
                        logit = softcap * math.tanh(logit / softcap)
                    if bias is not None:
                        logit += float(bias[b % bias.shape[0], h % bias.shape[1], i, j])
                    logits.append(logit)
                    values.append(v[b, h // group, j])
                total = sum(math.exp(logit) for logit in logits)
                if sinks is not None:
                    total += math.exp(float(sinks[b % sinks.shape[0], h, i % sinks.shape[2]]))
                if total == 0.0:
                    z[b, h, i], lse[b, h, i] = math.nan, math.nan  # nothing is defined for a row without keys
                    continue
                lse[b, h, i] = math.log(total)
                for logit, value in zip(logits, values, strict=True):
                    z[b, h, i] += math.exp(logit) / total * value
    return z, lse


def vectors(*, heads=4, kv_heads=2, n_query=9, n_key=9, d_qk=8, d_v=8, dtype=torch.float32):
    """q, k, v of 2 prompts; logits of about 2, far from uniform."""
    return (
        2 * torch.randn(2, heads, n_query, d_qk, dtype=dtype),
        torch.randn(2, kv_heads, n_key, d_qk, dtype=dtype),
        torch.randn(2, kv_heads, n_key, d_v, dtype=dtype),
    )


def left_padded(n=9):
    """Causal; the first prompt's first three tokens are padding, so that its queries 0, 1, 2 see nothing."""
    allowed = torch.ones(2, n, n, dtype=torch.bool).tril()
    allowed[0, :, :3] = False
    return allowed


def window(n=9, width=3):
    return torch.ones(2, n, n, dtype=torch.bool).tril() & torch.ones(n, n, dtype=torch.bool).triu(1 - width)


CASES = {
    "causal": ({}, lambda: {"causal": True}),
    "not causal": ({}, dict),
    "as many key heads as heads": ({"kv_heads": 4}, lambda: {"causal": True}),
    "one key head": ({"kv_heads": 1}, lambda: {"causal": True}),
    "values narrower than keys": ({"d_qk": 12, "d_v": 5}, lambda: {"causal": True}),
    "values wider than keys": ({"d_qk": 5, "d_v": 12}, lambda: {"causal": True}),
    "fewer queries than keys": ({"n_query": 4}, dict),
    "one token": ({"n_query": 1, "n_key": 1}, lambda: {"causal": True}),
    "one query": ({"n_query": 1}, dict),
    "left padding": ({}, lambda: {"allowed": left_padded()}),
    "sliding window": ({}, lambda: {"allowed": window()}),
    "bias per head": ({}, lambda: {"causal": True, "bias": torch.randn(1, 4, 9, 9)}),
    "bias per prompt and mask": ({}, lambda: {"allowed": left_padded(), "bias": torch.randn(2, 4, 9, 9)}),
    "soft-cap": ({}, lambda: {"causal": True, "softcap": 1.5}),
    "soft-cap and mask": ({}, lambda: {"allowed": left_padded(), "softcap": 1.5}),
    "sinks per head": ({}, lambda: {"causal": True, "sinks": torch.randn(1, 4, 1)}),
    "sinks per row": ({}, lambda: {"causal": True, "sinks": torch.randn(2, 4, 9)}),
    "sinks and window": ({}, lambda: {"allowed": window(), "sinks": torch.randn(1, 4, 1)}),
    "everything": (
        {"kv_heads": 1, "d_v": 5},
        lambda: {"allowed": window(), "bias": torch.randn(2, 4, 9, 9), "softcap": 2.0, "sinks": torch.randn(2, 4, 9)},
    ),
}


def made(name, dtype=torch.float32):
    """q, k, v, the rule, and the definition's z and lse."""
    shape, options = CASES[name][0], CASES[name][1]()
    q, k, v = vectors(**shape)
    z, lse = written_out(q, k, v, scale=0.3, **options)
    bias, allowed, sinks = options.get("bias"), options.get("allowed"), options.get("sinks")
    if allowed is not None:
        mask = additive(allowed[:, None], dtype)
        bias = mask if bias is None else bias.to(dtype) + mask
    rule = AttentionSpec(
        scale=0.3,
        causal=options.get("causal", False),
        bias=None if bias is None else bias.to(dtype),
        softcap=options.get("softcap"),
        sinks=None if sinks is None else sinks.to(dtype),
    )
    return q.to(dtype), k.to(dtype), v.to(dtype), rule, z, lse


def assert_close(given, wanted, atol):
    """Where the definition says something; elsewhere the numbers must still be finite."""
    assert torch.isfinite(given).all()
    defined = ~torch.isnan(wanted)
    assert defined.any()
    torch.testing.assert_close(given.double()[defined], wanted[defined], atol=atol, rtol=0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel", ["flash", "tiled", "reference"])
def test_kernel_computes_the_definition_in_float32(name, kernel):
    q, k, v, rule, z, lse = made(name)
    if kernel == "flash" and rule.softcap is not None:
        with pytest.raises(ArgumentError, match="soft-cap"):
            attend(q, k, v, rule, "flash")
        return
    given_z, given_lse, used = attend(q, k, v, rule, kernel)
    assert used == kernel
    assert given_z.dtype == given_lse.dtype == torch.float32
    assert_close(given_z, z, 1e-5)
    assert_close(given_lse, lse, 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_kernels_keep_float64(name):
    q, k, v, rule, z, lse = made(name, torch.float64)
    for kernel in (tiled, reference, *([] if rule.softcap else [flash])):
        given_z, given_lse = kernel(q, k, v, rule)
        assert given_z.dtype == given_lse.dtype == torch.float64
        # bias and sinks are drawn in float32 but added in float64: exact
        assert_close(given_z, z, 1e-9)
        assert_close(given_lse, lse, 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["causal", "left padding", "sinks per head", "soft-cap", "bias per prompt and mask"])
def test_half_precision_stays_near_the_definition_and_keeps_a_float32_lse(name, dtype):
    # bfloat16 has 8 bits: inputs of size 4 are off by 4/256, a dot product of 8 of them by about 0.05
    q, k, v, rule, z, lse = made(name, dtype)
    given_z, given_lse, _ = attend(q, k, v, rule)
    assert given_z.dtype == dtype
    assert given_lse.dtype == torch.float32
    assert_close(given_z, z, 0.15 if dtype == torch.bfloat16 else 0.02)
    assert_close(given_lse, lse, 0.15 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("name", ["causal", "left padding", "sinks per row", "everything", "fewer queries than keys"])
@pytest.mark.parametrize("tile", [1, 2, 4, 5, 9, 64])
def test_no_tile_size_changes_the_result(name, tile):
    # 9 queries: tiles of 2, 4 and 5 leave a rest
    q, k, v, rule, z, lse = made(name)
    given_z, given_lse = tiled(q, k, v, rule, tile=tile)
    assert_close(given_z, z, 1e-5)
    assert_close(given_lse, lse, 1e-5)


@settings(max_examples=20)
@given(
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2), (3, 3)]),
    n=st.integers(1, 20),
    d_qk=st.integers(1, 9),
    d_v=st.integers(1, 9),
    causal=st.booleans(),
    tile=st.integers(1, 21),
)
def test_three_kernels_agree_at_any_size(heads, n, d_qk, d_v, causal, tile):
    torch.manual_seed(n)
    q, k, v = vectors(heads=heads[0], kv_heads=heads[1], n_query=n, n_key=n, d_qk=d_qk, d_v=d_v, dtype=torch.float64)
    rule = AttentionSpec(scale=0.5, causal=causal)
    wanted = reference(q, k, v, rule)
    for given_ in (flash(q, k, v, rule), tiled(q, k, v, rule, tile=tile)):
        torch.testing.assert_close(given_, wanted, atol=1e-10, rtol=0)


def test_uniform_attention_has_the_log_of_the_number_of_keys_as_lse():
    # q = 0: every logit is 0, so row i of a causal head has lse = log(i + 1) and z = mean of v[0..i]
    q, k, v = torch.zeros(1, 1, 5, 4), torch.randn(1, 1, 5, 4), torch.arange(5.0).reshape(1, 1, 5, 1)
    for kernel in kernels.KERNELS:
        z, lse, _ = attend(q, k, v, AttentionSpec(scale=1.0, causal=True), kernel)
        assert lse[0, 0].tolist() == approx([math.log(i + 1) for i in range(5)], abs=1e-6)
        assert z[0, 0, :, 0].tolist() == approx([i / 2 for i in range(5)], abs=1e-6)


def test_a_sink_takes_its_share_and_gives_nothing():
    # one key with logit 0 beside a sink of log 3: p = 1 / (1 + 3), z = v / 4 = 2, lse = log 4
    q, k, v = torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1, 2), torch.full((1, 1, 1, 2), 8.0)
    for kernel in kernels.KERNELS:
        z, lse, _ = attend(
            q, k, v, AttentionSpec(scale=1.0, causal=True, sinks=torch.full((1, 1, 1), math.log(3))), kernel
        )
        assert z.flatten().tolist() == approx([2.0, 2.0], abs=1e-6)
        assert lse.item() == approx(math.log(4), abs=1e-6)


def test_query_head_h_uses_key_head_h_over_group():
    # 4 query heads on 2 key heads: 0, 1 -> 0 and 2, 3 -> 1
    kv = torch.tensor([10.0, 20.0]).reshape(1, 2, 1, 1)
    assert repeat_heads(kv, 4).flatten().tolist() == [10.0, 10.0, 20.0, 20.0]
    assert repeat_heads(kv, 2) is kv


def windowed(n, width, d=8, **options):
    """In float64: q, k, v, and a rule whose mask lets each query see itself and the `width - 1` keys before it."""
    bias = additive(window(n, width)[:1, None], torch.float64)
    parts = vectors(n_query=n, n_key=n, d_qk=d, d_v=d, dtype=torch.float64)
    return *parts, AttentionSpec(scale=0.3, causal=False, bias=bias, **options)


def test_a_block_of_queries_reads_the_keys_that_its_window_holds(monkeypatch):
    # 40 queries in blocks of 8, each seeing itself and 2 before: 8 keys, then 4 times 8 + 2, of 5 * 40
    read = []
    fused = kernels._fused
    monkeypatch.setattr(kernels, "BLOCK", 8)
    monkeypatch.setattr(kernels, "_fused", lambda q, k, v, rule: read.append(k.shape[2]) or fused(q, k, v, rule))
    q, k, v, rule = windowed(40, 3)
    given_ = flash(q, k, v, rule)
    assert read == [8, 10, 10, 10, 10]
    torch.testing.assert_close(given_, reference(q, k, v, rule), atol=1e-10, rtol=0)
    assert [rule.seen(start, start + 8, 40) for start in (0, 16)] == [(0, 8), (14, 24)]


def test_tiled_reads_no_more_with_a_soft_cap():
    # 2 prompts of 4 heads, tiles of 8 queries over 40 keys: 2 * 4 * 8 * 40 = 2,560 logits. A window of 3 leaves 10
    # keys: 2 * 4 * 8 * 10 = 640. So many numbers, 2 * 4 * 40 * 2, have q, z and the repeated k and v; nothing has more.
    q, k, v, rule = windowed(40, 3, d=2, softcap=2.0)
    with _Largest() as seen:
        given_ = tiled(q, k, v, rule, tile=8)
    assert seen.elements == 640
    torch.testing.assert_close(given_, reference(q, k, v, rule), atol=1e-10, rtol=0)


@settings(max_examples=30)
@given(n=st.integers(2, 24), block=st.integers(1, 9), share=st.sampled_from([0.05, 0.3, 0.9]), seed=st.integers(0, 99))
def test_blocks_change_no_row_that_sees_a_key(n, block, share, seed):
    # Any mask, rows and columns that are closed among them; what a row without keys gives means nothing.
    torch.manual_seed(seed)
    allowed = (torch.rand(2, 4, n, n) < share) & (torch.rand(n) < 0.7)
    rule = AttentionSpec(
        scale=0.5, causal=False, bias=additive(allowed, torch.float64), sinks=torch.randn(1, 4, 1).double()
    )
    q, k, v = vectors(n_query=n, n_key=n, dtype=torch.float64)
    sees, wanted = allowed.any(-1), reference(q, k, v, rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "BLOCK", block)
        for given_ in (flash(q, k, v, rule), tiled(q, k, v, rule, tile=block)):
            assert all(one.isfinite().all() for one in given_)
            for ours, theirs in zip(given_, wanted, strict=True):
                torch.testing.assert_close(ours[sees], theirs[sees], atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [(24, 1), (1, 24), (1, 1)])
def test_a_mask_that_says_the_same_of_every_key_or_query_closes_none_of_the_others(shape, monkeypatch):
    # Blocks of 8 of 24 queries, which all see all 24 keys; a number per query moves a row's lse and nothing else.
    monkeypatch.setattr(kernels, "BLOCK", 8)
    q, k, v = vectors(n_query=24, n_key=24, dtype=torch.float64)
    for bias in (torch.ones(1, 1, *shape, dtype=torch.bool), torch.randn(1, 4, *shape, dtype=torch.float64)):
        rule = AttentionSpec(scale=0.3, causal=False, bias=bias)
        wanted = reference(q, k, v, rule)
        for given_ in (flash(q, k, v, rule), tiled(q, k, v, rule, tile=8)):
            torch.testing.assert_close(given_, wanted, atol=1e-10, rtol=0)


def test_gradients_flow_through_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", 8)
    q, k, v, rule = windowed(40, 3)
    inputs = [one.requires_grad_() for one in (q, k, v)]
    ours = torch.autograd.grad(flash(q, k, v, rule)[0].square().sum(), inputs)
    torch.testing.assert_close(ours, torch.autograd.grad(reference(q, k, v, rule)[0].square().sum(), inputs))


@pytest.mark.parametrize("kernel", [flash, tiled])
def test_a_row_that_minus_infinity_closes_is_finite(kernel):
    q, k, v, rule, z, lse = made("left padding")
    rule = AttentionSpec(scale=0.3, causal=False, bias=rule.bias.masked_fill(kernels.closed(rule.bias), -math.inf))
    given_z, given_lse = kernel(q, k, v, rule)
    assert given_z.isfinite().all()
    assert given_lse.isfinite().all()
    assert_close(given_z, z, 1e-5)
    assert_close(given_lse, lse, 1e-5)


def test_inputs_are_left_unchanged():
    q, k, v, rule, *_ = made("everything")
    before = [x.clone() for x in (q, k, v, rule.bias, rule.sinks)]
    for kernel in (tiled, reference):
        kernel(q, k, v, rule)
    flash(q, k, v, AttentionSpec(scale=0.3, causal=False, bias=rule.bias, sinks=rule.sinks))
    assert all(torch.equal(x, y) for x, y in zip((q, k, v, rule.bias, rule.sinks), before, strict=True))


def test_a_boolean_mask_becomes_numbers_and_other_masks_stay():
    mask = torch.tensor([True, False])
    assert additive(mask, torch.float32).tolist() == [0.0, torch.finfo(torch.float32).min]
    assert additive(mask, torch.float16).tolist() == [0.0, -65504.0]
    assert additive(torch.tensor([0.0, -5.0]), torch.float64).tolist() == [0.0, -5.0]


class _Largest(TorchDispatchMode):
    """Records the most elements of any tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made_ = func(*args, **(kwargs or {}))
        for tensor in made_ if isinstance(made_, (tuple, list)) else [made_]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made_


def largest(kernel, n, **options):
    q, k, v = (torch.randn(1, 2, n, 4) for _ in range(3))
    with _Largest() as seen:
        kernel(q, k, v, AttentionSpec(scale=0.5, causal=True, softcap=options.pop("softcap", None)), **options)
    return seen.elements


def test_tiled_holds_a_tile_and_never_the_matrix():
    # 2 heads, 128 tokens, tile 8: logits of 2 * 8 * 128 = 2,048 numbers; the matrix would have 2 * 128^2 = 32,768
    assert largest(tiled, 128, tile=8, softcap=5.0) == 2 * 8 * 128
    assert largest(tiled, 256, tile=8, softcap=5.0) == 2 * 8 * 256
    assert largest(reference, 128) >= 2 * 128**2


def test_tiled_chooses_its_own_tile_within_the_limit(monkeypatch):
    # 2 heads * 256 keys * 32 queries = 16,384
    monkeypatch.setattr(kernels, "TILE_ELEMENTS", 1 << 14)
    assert largest(tiled, 256) == 1 << 14


def test_flash_makes_nothing_larger_than_its_inputs():
    assert largest(flash, 256) <= 2 * 256 * 4


def test_flash_is_picked_where_it_computes_the_rule():
    q, k, v = vectors()
    causal = AttentionSpec(scale=1.0, causal=True)
    assert pick(q, k, v, causal) == "flash"
    assert pick(q, k, v, AttentionSpec(scale=1.0, causal=True, softcap=5.0)) == "tiled"
    # flash aligns a causal mask to other corners when there are fewer queries than keys
    assert pick(q[:, :, :4], k, v, causal) == "tiled"
    assert pick(q[:, :, :0], k[:, :, :0], v[:, :, :0], causal) == "tiled"
    assert attend(q, k, v, AttentionSpec(scale=1.0, causal=True, softcap=5.0))[2] == "tiled"


def test_an_unknown_kernel_is_refused_by_name():
    q, k, v = vectors()
    unchecked = inspect.unwrap(attend)  # while testing, its signature refuses the name first
    with pytest.raises(ArgumentError, match="kernel='flush' is not known; use one of flash, tiled, reference"):
        unchecked(q, k, v, AttentionSpec(scale=1.0, causal=True), "flush")


LEARNT = ["causal", "bias per head", "sinks per head", "sinks per row", "soft-cap", "left padding"]


@pytest.mark.parametrize("name", LEARNT)
def test_gradients_of_the_picked_kernel_are_those_of_the_definition(name):
    # flash gives no gradient to lse, and sinks rescale z by lse: there, tiled must be picked
    q, k, v, rule, *_ = made(name, torch.float64)
    leaves = [q, k, v, *(x for x in (rule.bias if "bias" in name else None, rule.sinks) if x is not None)]
    weight = torch.randn(*q.shape[:3], v.shape[-1], dtype=torch.float64)
    weight[0, :, :3] = 0  # rows without keys mean nothing

    def gradients(kernel):
        for leaf in leaves:
            leaf.requires_grad_(True)
            leaf.grad = None
        (attend(q, k, v, rule, kernel)[0] * weight).sum().backward()
        return [leaf.grad.clone() for leaf in leaves]

    for given_, wanted in zip(gradients(None), gradients("reference"), strict=True):
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(given_, wanted, atol=1e-10, rtol=0)


def test_flash_is_picked_again_when_no_gradient_is_asked_for():
    q, k, v, rule, *_ = made("sinks per head")
    q.requires_grad_(True)
    assert pick(q, k, v, rule) == "tiled"
    with torch.no_grad():
        assert pick(q, k, v, rule) == "flash"


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here; run on a machine that has one")


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["causal", "values narrower than keys", "sinks per row", "one token", "left padding", "sinks and window"]
)
def test_flash_on_cuda_computes_the_definition(name, dtype):
    q, k, v, rule, z, lse = made(name, dtype)
    sinks = None if rule.sinks is None else rule.sinks.cuda()
    bias = None if rule.bias is None else rule.bias.cuda()
    rule = AttentionSpec(scale=rule.scale, causal=rule.causal, bias=bias, sinks=sinks)
    given_z, given_lse, used = attend(q.cuda(), k.cuda(), v.cuda(), rule)
    assert used == "flash"
    atol = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    assert_close(given_z.cpu(), z, atol)
    assert_close(given_lse.cpu(), lse, atol)


@cuda
def test_soft_caps_and_wide_heads_go_to_tiled_on_cuda():
    q, k, v, rule, z, lse = made("soft-cap and mask")
    rule = AttentionSpec(scale=rule.scale, causal=False, bias=rule.bias.cuda(), softcap=rule.softcap)
    given_z, given_lse, used = attend(q.cuda(), k.cuda(), v.cuda(), rule)
    assert used == "tiled"
    assert_close(given_z.cpu(), z, 1e-4)
    assert_close(given_lse.cpu(), lse, 1e-4)
    wide = torch.zeros(1, 1, 2, 264, device="cuda")
    assert not flash_applies(wide, wide, wide, AttentionSpec(scale=1.0, causal=True))
