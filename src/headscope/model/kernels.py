"""Attention that also returns each row's log-sum-exp.

    logits[q, k] = softcap(scale * q . k) + bias[q, k]
    lse[q]       = log(sum_k exp(logits[q, k]) + exp(sink))
    z[q]         = sum_k exp(logits[q, k] - lse[q]) v[k]

With `lse` any single probability is `exp(logits[q, k] - lse[q])`, so no caller needs the n x n matrix.

Three kernels compute the same thing. `flash` is PyTorch's fused one: O(n) memory beside a mask, no soft-cap. `tiled` is
plain PyTorch over blocks of queries: any device, bias, soft-cap and sink, O(tile x n) memory. `reference` forms the
whole matrix and is for tests. `attend` picks flash where it applies, else tiled, and says which it was.

Where a mask closes keys to a whole block of queries, as windows do, a processor reads them in neither kernel: a query
then costs its window and a block, not all keys.

Float32 results lie within 1e-5 of float64 ones. A row with no allowed key gives finite values that mean nothing.
Gradients flow through z in every kernel; through `lse` only in `tiled` and `reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.errors import ArgumentError

Kernel = Literal["flash", "tiled", "reference"]

TILE_ELEMENTS = 1 << 22
"""Logits the tiled kernel holds at once, over batch, heads, queries and keys: 16 MiB in float32."""
BLOCK = 512
"""Queries that the flash kernel is given at once where a mask closes keys to them; fewer than two blocks stay whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What comes between `q . k` and a probability: everything but the vectors themselves."""

    scale: float
    """Factor of `q . k`, usually 1 / sqrt(d_head)."""
    causal: bool
    """Keys after the query are masked. False where `bias` already says so."""
    bias: Float[Tensor, "#batch #head query key"] | Bool[Tensor, "#batch #head query key"] | None = None
    """Added to the logits after the soft-cap: masks (a large negative number), position biases. A mask may be boolean
    (True: may attend), which takes a quarter of the memory."""
    softcap: float | None = None
    """Logits become softcap * tanh(logits / softcap)."""
    sinks: Float[Tensor, "#batch head #query"] | None = None
    """One extra logit per row that takes probability and gives no value."""

    def logits(self, dots: Float[Tensor, "batch head query key"], start: int = 0, first: int = 0) -> Tensor:
        """Attention logits from `q . k` for the queries from `start` and the keys from `first` on.

        Masked places hold a large negative number.
        """
        n_query, n_key = dots.shape[-2:]
        dots = dots * self.scale
        if self.softcap is not None:
            dots = torch.tanh(dots / self.softcap) * self.softcap
        if self.bias is not None:
            dots = dots + additive(self._bias(start, start + n_query, first, first + n_key), dots.dtype)
        if self.causal:
            query = torch.arange(start, start + n_query, device=dots.device)
            future = torch.arange(first, first + n_key, device=dots.device) > query[:, None]
            dots = dots.masked_fill(future, torch.finfo(dots.dtype).min)
        return dots

    def _bias(self, start: int, stop: int, first: int, last: int) -> Tensor:
        assert self.bias is not None
        rows = self.bias if self.bias.shape[-2] == 1 else self.bias[:, :, start:stop]
        return rows if self.bias.shape[-1] == 1 else rows[..., first:last]

    def seen(self, start: int, stop: int, n_key: int) -> tuple[int, int]:
        """The first key that any query from `start` to `stop` may see, and the one after the last.

        Where none sees any, all count; so they do on a GPU, which would have to wait for the answer.
        """
        last = min(stop, n_key) if self.causal else n_key
        if self.bias is None or 1 in self.bias.shape[-2:] or self.bias.device.type != "cpu":
            return 0, last
        rows = self._bias(start, stop, 0, last)
        largest = rows.any(2, keepdim=True) if rows.dtype == torch.bool else rows.amax(2, keepdim=True)
        open_ = torch.nonzero((~closed(largest)).any(0).any(0).any(0)).flatten()
        return (int(open_[0]), int(open_[-1]) + 1) if len(open_) else (0, last)

    def of(self, start: int, stop: int, first: int, last: int) -> AttentionSpec:
        """The rule of these queries and keys alone, for one that is not `causal`."""
        assert not self.causal
        sinks = self.sinks if self.sinks is None or self.sinks.shape[-1] == 1 else self.sinks[..., start:stop]
        bias = None if self.bias is None else self._bias(start, stop, first, last)
        return replace(self, bias=bias, sinks=sinks)


def closed(bias: Tensor) -> Tensor:
    """Where a mask forbids attention: one of numbers by half of the most negative of its dtype, or less."""
    return ~bias if bias.dtype == torch.bool else bias < torch.finfo(bias.dtype).min / 2


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask (True: may attend) as numbers to add; others are passed through in `dtype`."""
    if mask.dtype == torch.bool:
        zero = torch.zeros((), dtype=dtype, device=mask.device)
        return torch.where(mask, zero, torch.finfo(dtype).min)
    return mask.to(dtype)


def repeat_heads(kv: Float[Tensor, "batch kv_head key d"], n_heads: int) -> Float[Tensor, "batch head key d"]:
    """Keys or values of grouped-query attention, one per query head: query head h uses KV head h // group."""
    group = n_heads // kv.shape[1]
    return kv if group == 1 else kv.repeat_interleave(group, dim=1)


def flash_applies(q: Tensor, k: Tensor, v: Tensor, rule: AttentionSpec) -> bool:
    """Whether PyTorch's fused kernel of this device computes this rule and returns its log-sum-exp."""
    if rule.softcap is not None or min(q.shape[0], q.shape[2], k.shape[2]) == 0:
        return False
    if rule.causal and q.shape[2] != k.shape[2]:
        return False
    if torch.is_grad_enabled():
        bias_learns = rule.bias is not None and rule.bias.requires_grad
        if bias_learns or (rule.sinks is not None and any(x.requires_grad for x in (q, k, v, rule.sinks))):
            return False  # the fused kernels give no gradient to the mask, nor to lse, which rescales sinks
    if q.device.type == "cpu":
        return True
    if q.device.type != "cuda":
        return False
    if q.dtype != torch.float32 and torch.cuda.get_device_capability(q.device) < (8, 0):
        return False
    return q.dtype in (torch.float16, torch.bfloat16, torch.float32) and max(q.shape[-1], v.shape[-1]) <= 256


def flash(
    q: Float[Tensor, "batch head query d_qk"],
    k: Float[Tensor, "batch kv_head key d_qk"],
    v: Float[Tensor, "batch kv_head key d_v"],
    rule: AttentionSpec,
) -> tuple[Float[Tensor, "batch head query d_v"], Float[Tensor, "batch head query"]]:
    """PyTorch's fused kernel, over blocks of queries where a mask closes keys to them.

    Sinks only rescale its result: z * exp(lse - lse'), lse' = logaddexp(lse, sink).
    """
    n_query, n_key = q.shape[2], k.shape[2]
    if rule.bias is None or rule.causal or n_query < 2 * BLOCK:
        return _fused(q, k, v, rule)
    blocks = [(start, min(start + BLOCK, n_query)) for start in range(0, n_query, BLOCK)]
    seen = [rule.seen(*block, n_key) for block in blocks]
    if all(keys == (0, n_key) for keys in seen):
        return _fused(q, k, v, rule)
    parts = [
        _fused(q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last], rule.of(start, stop, first, last))
        for (start, stop), (first, last) in zip(blocks, seen, strict=True)
    ]
    z, lse = zip(*parts, strict=True)
    return torch.cat(z, 2), torch.cat(lse, 2)


def _fused(q: Tensor, k: Tensor, v: Tensor, rule: AttentionSpec) -> tuple[Tensor, Tensor]:
    d_v, width = v.shape[-1], max(q.shape[-1], v.shape[-1])
    if q.device.type == "cuda":
        width = -(-width // 8) * 8  # its kernels read eight numbers at a time
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    q, k, v = (x if x.shape[-1] == width else torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
    ops = torch.ops.aten
    bias = None if rule.bias is None else additive(rule.bias, q.dtype)
    if q.device.type == "cpu":
        z, lse = ops._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, rule.causal, attn_mask=bias, scale=rule.scale
        )
    elif q.dtype == torch.float32 or bias is not None:
        bias = None if bias is None else _aligned(bias).expand(*q.shape[:3], k.shape[2])
        z, lse, *_ = ops._scaled_dot_product_efficient_attention(
            q, k, v, bias, True, 0.0, rule.causal, scale=rule.scale
        )
    else:
        z, lse, *_ = ops._scaled_dot_product_flash_attention(q, k, v, 0.0, rule.causal, False, scale=rule.scale)
    z, lse = z[..., :d_v], lse[..., : q.shape[2]]
    if rule.sinks is not None:
        with_sink = torch.logaddexp(lse, rule.sinks.to(lse.dtype))
        z = z * torch.exp(lse - with_sink).to(z.dtype)[..., None]
        lse = with_sink
    return z, lse


def _aligned(bias: Tensor) -> Tensor:
    """The same numbers in rows that begin at multiples of 16, as the kernel reads them."""
    if bias.stride(-1) == 1 and not any(one % 16 for one in bias.stride()[:-1]):
        return bias
    return torch.nn.functional.pad(bias, (0, -bias.shape[-1] % 16)).contiguous()[..., : bias.shape[-1]]


def tiled(
    q: Float[Tensor, "batch head query d_qk"],
    k: Float[Tensor, "batch kv_head key d_qk"],
    v: Float[Tensor, "batch kv_head key d_v"],
    rule: AttentionSpec,
    *,
    tile: int | None = None,
) -> tuple[Float[Tensor, "batch head query d_v"], Float[Tensor, "batch head query"]]:
    """Plain PyTorch over blocks of `tile` queries, each against the keys it may see. Logits are float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    batch, n_heads, n_query = q.shape[:3]
    n_key = k.shape[2]
    tile = tile or max(16, TILE_ELEMENTS // max(1, batch * n_heads * n_key))
    k, v = repeat_heads(k, n_heads), repeat_heads(v, n_heads)
    z = q.new_empty(batch, n_heads, n_query, v.shape[-1])
    lse = torch.empty(batch, n_heads, n_query, dtype=wide, device=q.device)
    for start in range(0, n_query, tile):
        stop = min(start + tile, n_query)
        first, last = rule.seen(start, stop, n_key)
        dots = q[:, :, start:stop].to(wide) @ k[:, :, first:last].to(wide).mT
        logits = rule.logits(dots, start, first)
        rows = torch.logsumexp(logits, dim=-1).clamp(min=torch.finfo(wide).min)  # where all is minus infinity
        if rule.sinks is not None:
            sinks = rule.sinks if rule.sinks.shape[-1] == 1 else rule.sinks[..., start:stop]
            rows = torch.logaddexp(rows, sinks.to(wide))
        z[:, :, start:stop] = (torch.exp(logits - rows[..., None]) @ v[:, :, first:last].to(wide)).to(z.dtype)
        lse[:, :, start:stop] = rows
    return z, lse


def reference(
    q: Float[Tensor, "batch head query d_qk"],
    k: Float[Tensor, "batch kv_head key d_qk"],
    v: Float[Tensor, "batch kv_head key d_v"],
    rule: AttentionSpec,
) -> tuple[Float[Tensor, "batch head query d_v"], Float[Tensor, "batch head query"]]:
    """The definition written out, with the whole matrix in memory and a softmax over keys and sink. For tests."""
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    logits = rule.logits(q @ k.mT)
    sink = logits[..., :0] if rule.sinks is None else rule.sinks[..., None].expand(*logits.shape[:-1], 1)
    logits = torch.cat([logits, sink], dim=-1)
    pattern = torch.softmax(logits, dim=-1)[..., : k.shape[2]]
    return pattern @ v, torch.logsumexp(logits, dim=-1)


KERNELS: dict[Kernel, Callable[[Tensor, Tensor, Tensor, AttentionSpec], tuple[Tensor, Tensor]]] = {
    "flash": flash,
    "tiled": tiled,
    "reference": reference,
}


def pick(q: Tensor, k: Tensor, v: Tensor, rule: AttentionSpec) -> Kernel:
    """The fastest kernel that computes this rule on this device."""
    return "flash" if flash_applies(q, k, v, rule) else "tiled"


def attend(
    q: Float[Tensor, "batch head query d_qk"],
    k: Float[Tensor, "batch kv_head key d_qk"],
    v: Float[Tensor, "batch kv_head key d_v"],
    rule: AttentionSpec,
    kernel: Kernel | None = None,
) -> tuple[Float[Tensor, "batch head query d_v"], Float[Tensor, "batch head query"], Kernel]:
    """Attention of every head.

    Args:
        q: Queries, after rotary embedding and query-key norm.
        k: Keys, one per KV head.
        v: Values, one per KV head; d_v may differ from d_qk.
        rule: Scale, mask, bias, soft-cap, sinks.
        kernel: One of `KERNELS`; by default the fastest that applies.

    Returns:
        Each head's mixed values, the natural log-sum-exp of each row (float32 or wider), and the kernel used.

    Raises:
        ArgumentError: no such kernel, or `flash` where it would compute something else.
    """
    name = kernel or pick(q, k, v, rule)
    if name not in KERNELS:
        raise ArgumentError(f"kernel={name!r} is not known; use one of {', '.join(KERNELS)}.")
    if name == "flash" and not flash_applies(q, k, v, rule):
        raise ArgumentError(
            "kernel='flash' cannot compute this attention (a soft-cap, a learned bias or sink under gradients, or this "
            "device or dtype); use 'tiled', or leave the choice open."
        )
    z, lse = KERNELS[name](q, k, v, rule)
    return z, lse, name
