"""One layer's attention in one forward pass, as a visitor sees it.

Where our kernel ran, there are `q`, `k`, `v`, the rule between them and each row's log-sum-exp; single probabilities
are `exp(logits - lse)` and cost O(targets * d_head). Where only the model's own code could run, there is its pattern.
Either way `probabilities` answers the same question.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.model.kernels import BLOCK, AttentionSpec, closed, repeat_heads

CHUNK = 1 << 18
"""Numbers of q gathered at once, 1 MiB in float32, so that they stay in the processor's cache: larger pieces take up to
four times as long where q is of 16 bits and must be widened first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What determines every probability of a layer without forming the matrix."""

    q: Float[Tensor, "batch head query d_qk"]
    k: Float[Tensor, "batch kv_head key d_qk"]
    v: Float[Tensor, "batch kv_head key d_v"]
    rule: AttentionSpec
    lse: Float[Tensor, "batch head query"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """One call of one layer's attention. Tensors are the model's own: read them, do not write to them."""

    layer: int
    """Index of the decoder layer, from 0, counting layers without attention too."""
    call: int
    """How often this layer's attention ran before in this forward pass; 0 except in looped models."""
    z: Float[Tensor, "batch query head d_head"]
    """Each head's mixed values, before the output projection."""
    kernel: str
    """What computed it: `flash`, `tiled`, `reference`, or `own` for the model's own eager code."""
    scores: Scores | None = None
    """q, k, v and lse; None where only the model's own code could run."""
    own_pattern: Float[Tensor, "batch head query key"] | None = None
    """The model's own attention probabilities; None where `scores` is there."""
    own_values: Float[Tensor, "batch kv_head key d_v"] | None = None
    """The values that these mix, where they were seen; None where `scores` is there."""

    @property
    def n_heads(self) -> int:
        """Number of query heads."""
        return self.z.shape[2]

    def probabilities(
        self, batch: Int[Tensor, " target"], query: Int[Tensor, " target"], key: Int[Tensor, " target"]
    ) -> Float[Tensor, "target head"]:
        """Attention probability at single places, exact, float32 or wider.

        p[t, h] = exp(softcap(scale * q[query_t] . k[key_t]) + bias - lse[query_t])

        Places that the layer masks have probability 0, also in rows where all are masked, like those of padding.
        Carries gradients only where the kernel's `lse` does; see `headscope.model.kernels`.
        """
        if self.scores is None:
            assert self.own_pattern is not None
            own = self.own_pattern[batch, :, query, key]
            return own.to(torch.promote_types(own.dtype, torch.float32))
        with _gradients_as_of(self.scores.lse):
            step = max(1, CHUNK // (self.n_heads * self.scores.q.shape[-1]))
            chunks = zip(batch.split(step), query.split(step), key.split(step), strict=True)
            by_token = (_by_token(self.scores.q), _by_token(self.scores.k))
            return torch.cat([_gathered(self.scores, by_token, *places) for places in chunks])

    def pattern(self) -> Float[Tensor, "batch head query key"]:
        """The whole matrix of probabilities: O(n^2) memory, for short inputs."""
        if self.scores is None:
            assert self.own_pattern is not None
            return self.own_pattern
        s = self.scores
        wide = s.lse.dtype
        with _gradients_as_of(s.lse):
            logits = s.rule.logits(s.q.to(wide) @ repeat_heads(s.k, self.n_heads).to(wide).mT)
            pattern = torch.exp(logits - s.lse[..., None])
            return pattern if s.rule.bias is None else pattern.masked_fill(closed(s.rule.bias), 0.0)

    def of(self, rows: slice) -> Attention:
        """The same call, of some of the batch's rows: views, no copies."""
        if self.scores is None:
            assert self.own_pattern is not None
            values = None if self.own_values is None else self.own_values[rows]
            return replace(self, z=self.z[rows], own_pattern=self.own_pattern[rows], own_values=values)
        s, rule = self.scores, self.scores.rule
        shared = {name: one for name in ("bias", "sinks") if (one := getattr(rule, name)) is not None}
        own = {name: one[rows] for name, one in shared.items() if len(one) > 1}
        part = replace(s, q=s.q[rows], k=s.k[rows], v=s.v[rows], lse=s.lse[rows], rule=replace(rule, **own))
        return replace(self, z=self.z[rows], scores=part)

    def allowed(
        self, batch: Int[Tensor, " target"], query: Int[Tensor, " target"], key: Int[Tensor, " target"]
    ) -> tuple[Float[Tensor, " target"], Float[Tensor, " target"]]:
        """Whether the layer's mask lets each query see its key (1 or 0), and how many keys that query may see.

        Read from the mask of the first head, so sliding windows count; where the model's own code ran, a plain
        causal mask is assumed.
        """
        bias = self.scores.rule.bias if self.scores is not None else None
        if bias is None:
            return (key <= query).float(), (query + 1).float()
        open_ = bias[:, 0] if bias.dtype == torch.bool else ~closed(bias[:, 0])
        if self.scores is not None and self.scores.rule.causal:
            n_query, n_key = self.scores.q.shape[2], self.scores.k.shape[2]
            open_ = open_ & torch.ones(n_query, n_key, dtype=torch.bool, device=bias.device).tril()
        rows = batch if open_.shape[0] > 1 else torch.zeros_like(batch)
        line = query if open_.shape[1] > 1 else torch.zeros_like(query)
        # A sum over booleans widens all that it is given to eight times the size.
        seen = torch.cat([block.sum(-1) for block in open_.split(BLOCK, dim=1)], dim=1)
        return open_[rows, line, key].float(), seen[rows, line].float()


def _gradients_as_of(lse: Tensor) -> AbstractContextManager[None]:
    """Gradients that miss the share of `lse` would be wrong; without it there are none."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and lse.requires_grad)


def _by_token(part: Float[Tensor, "batch head token d"]) -> Float[Tensor, "place head d"]:
    return part.transpose(1, 2).flatten(0, 1)


def _gathered(
    s: Scores, by_token: tuple[Tensor, Tensor], batch: Tensor, query: Tensor, key: Tensor
) -> Float[Tensor, "target head"]:
    """`by_token` is q and k as [batch * token, head, d_qk], in most models views of what they are."""
    q = by_token[0].index_select(0, batch * s.q.shape[2] + query)
    k = by_token[1].index_select(0, batch * s.k.shape[2] + key)
    wide = s.lse.dtype
    grouped = q.unflatten(1, (k.shape[1], -1))  # query heads of one KV head share its key: none is repeated
    logits = torch.linalg.vecdot(grouped.to(wide), k.to(wide)[:, :, None]).flatten(1) * s.rule.scale
    if s.rule.softcap is not None:
        logits = torch.tanh(logits / s.rule.softcap) * s.rule.softcap
    bias, added = s.rule.bias, None
    if bias is not None:
        rows = batch if bias.shape[0] > 1 else torch.zeros_like(batch)
        line = query if bias.shape[2] > 1 else torch.zeros_like(query)
        added = bias[rows, :, line, key]
        if added.dtype != torch.bool:
            logits = logits + added
    if s.rule.causal:
        logits = logits.masked_fill((key > query)[:, None], float("-inf"))
    probability = torch.exp(logits - s.lse.transpose(1, 2)[batch, query])
    return probability if added is None else probability.masked_fill(closed(added), 0.0)
