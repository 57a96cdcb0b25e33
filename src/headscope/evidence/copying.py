"""Copying: does a head raise the token that it attends to?

Along the direct path, from the attended token's embedding through the head to the logits, a head does

    C = W_E W_V W_O W_U          [attended token, raised token]

with the layer's own normalisation folded into W_V and the final one into W_U (centring where it is LayerNorm). Three
readings, all about the diagonal of C against the rest:

    eigenvalue   sum(lambda) / sum(|lambda|) of C, in [-1, 1]: 1 where every direction is raised by itself. C has the
                 non-zero spectrum of the d_head x d_head matrix  W_O (W_U W_E) W_V,  so it is never formed.
    direct       C[s, s] / sum over t of max(0, C[s, t]), each row centred, among groups of 25 random tokens: the
                 attended token's share of all that is raised; in [-1, 1], since a centred row rises as much as it
                 falls. 0 on average for a head that does not care.
    top1         share of attended tokens that are raised above all the others of a sample of 512.

Heads add up, so a set has one C, the sum: two heads may copy together what neither copies alone.

Cost: W_U W_E once, 2 * vocabulary * d_model^2 operations; then 2 * 512^2 * d_head for each head.

It misleads where the path is not direct: where layers in between rewrite the embedding before the head reads it (the
first MLP, in GPT-2), or what it writes before the unembedding. Weights that cannot be assigned to heads are refused.
For sets that span layers the residual stream is taken to have one size in all of them.

Reference:
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits"; Olsson et al. 2022, arXiv:2209.11895.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import UnsupportedModel
from headscope.heads import HeadId
from headscope.model.load import Model
from headscope.model.precision import widened
from headscope.model.weights import LayerWeights, Norm, layer_weights, vocabulary
from headscope.records.common import Estimate

GROUP = 25
"""Tokens among which the direct reading compares, as in the published score."""
SAMPLE = 512
"""Tokens drawn, of the whole vocabulary but its special tokens."""
BLOCK = 8192
"""Vocabulary rows multiplied at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying:
    """How a head, or a set of heads together, copies along the direct path."""

    heads: tuple[HeadId, ...]
    """Which."""
    eigenvalue: float | None
    """In [-1, 1]; None where they write nothing."""
    direct: Estimate
    """In [-1, 1], with its interval over groups of tokens; 0 by chance."""
    top1: float
    """In [0, 1]; 1 / 512 by chance."""


class TokenSpace:
    """A model's heads in token space: read the weights once, then ask for any heads.

    Args:
        model: A loaded model.
        seed: Of the sample of tokens.

    Raises:
        UnsupportedModel: weights that cannot be assigned to heads, or no unembedding.
    """

    def __init__(self, model: Model, *, seed: int = 0) -> None:
        self.layers: dict[int, LayerWeights] = layer_weights(model)
        words = vocabulary(model)
        self._final = words.norm
        self.embedding: Tensor = words.embedding
        self.unembedding: Tensor = words.unembedding
        special = model.special_token_ids
        pool = [one for one in range(len(words.embedding)) if one not in special]
        if len(pool) < 2:
            raise UnsupportedModel(f"{model.id} has fewer than two tokens that are not special; none can be compared.")
        drawn = np.random.default_rng(seed).permutation(pool)[:SAMPLE]
        self._sample = torch.from_numpy(drawn)
        self._mixed: Tensor | None = None

    def ov(self, heads: Iterable[HeadId]) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "rank d_model"]]:
        """What these heads do to an attended embedding, as two factors: read, then write, normalisation folded."""
        reads, writes, device = list[Tensor](), list[Tensor](), self.embedding.device
        for head in heads:
            weights = self.layers[head.layer]
            reads.append(through(weights.norm, weights.w_v[weights.kv_head(head.head)]).to(device))
            writes.append(_written(weights, weights.w_o[head.head], self._final).to(device))
        return torch.cat(reads, dim=1), torch.cat(writes, dim=0)

    def copying(self, heads: Sequence[HeadId]) -> Copying:
        """How these heads copy together."""
        read, write = self.ov(heads)
        sample = self._sample.to(read.device)
        raised = _product(self.embedding[sample] @ read, write @ self.unembedding[sample].T)
        n = len(sample)
        size = min(GROUP, n)
        shares: list[float] = []
        for first in range(0, n - size + 1, size):
            block = widened(raised[first : first + size, first : first + size])
            block = block - block.mean(1, keepdim=True)
            above = block.clamp(min=0).sum(1)
            shares.append(float(torch.where(above > 0, block.diagonal() / above.where(above > 0, 1.0), 0.0).mean()))
        moved = bool((raised != 0).any())
        return Copying(
            heads=tuple(heads),
            eigenvalue=_balance(write @ self._token_map() @ read) if moved else None,
            direct=Estimate.of(np.asarray(shares)),
            top1=int((raised.argmax(1) == torch.arange(n, device=raised.device)).sum()) / n if moved else 0.0,
        )

    def _token_map(self) -> Float[Tensor, "d_model d_model"]:
        """W_U W_E: from what is written to what is read, summed over the vocabulary."""
        if self._mixed is None:
            total = torch.zeros(
                self.unembedding.shape[1],
                self.embedding.shape[1],
                dtype=torch.float64 if self.embedding.dtype == torch.float64 else torch.float32,
                device=self.embedding.device,
            )
            for first in range(0, len(self.embedding), BLOCK):
                rows = slice(first, first + BLOCK)
                total += self.unembedding[rows].T.to(total.dtype) @ self.embedding[rows].to(total.dtype)
            self._mixed = total
        return self._mixed


def _product(left: Float[Tensor, "token rank"], right: Float[Tensor, "rank token"]) -> Float[Tensor, "token token"]:
    """The product; zero where all of it is rounding, as of heads that cancel each other."""
    product = left @ right
    rounding = left.shape[1] * torch.finfo(left.dtype).eps * (left.abs() @ right.abs())
    return product if bool((product.abs() > rounding).any()) else torch.zeros_like(product)


def through(norm: Norm | None, weight: Float[Tensor, "d_model rank"]) -> Float[Tensor, "d_model rank"]:
    """The same map for a stream that a normalisation precedes: centred where it centres, then its gains."""
    if norm is None:
        return weight
    scaled = norm.gain[:, None].to(weight) * weight
    return scaled - scaled.mean(0, keepdim=True) if norm.centred else scaled


def _written(
    weights: LayerWeights, w_o: Float[Tensor, "d_v d_model"], final: Norm | None
) -> Float[Tensor, "d_v d_model"]:
    """What reaches the unembedding: through the layer's own output normalisation, if it has one, and the final one."""
    for norm in (weights.out_norm, final):
        if norm is not None:
            w_o = (w_o - w_o.mean(1, keepdim=True) if norm.centred else w_o) * norm.gain.to(w_o)
    return w_o


def _balance(core: Float[Tensor, "rank rank"]) -> float | None:
    """sum(lambda) / sum(|lambda|); directions that are zero but for rounding are left out.

    Many of those, as in a head of low rank, are many equal eigenvalues, on which the solver may not converge.
    """
    left, sizes, right = torch.linalg.svd(widened(core))
    kept = sizes > sizes[0] * len(core) * torch.finfo(core.dtype).eps
    values = torch.linalg.eigvals(sizes[kept] * (right[kept] @ left[:, kept]))
    size = float(values.abs().sum())
    return float(values.real.sum()) / size if size > 0 else None
