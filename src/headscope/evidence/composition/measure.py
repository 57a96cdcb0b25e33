"""Composition: does a later head read what an earlier head writes?

    CS(A, B) = |A B|_F / (|A|_F |B|_F)              row-vector convention, in [0, 1]

    A   W_V W_O of the sender, in an earlier layer
    B   W_Q W_K^T (q), W_K W_Q^T (k) or W_V W_O (v) of the receiver: into its queries, its keys or its values

Each layer's normalisation is folded in: the receiver's gains into what it reads with, the sender's output norm into
what it writes; where every layer centres what it reads, what is written is centred too.

Random baseline: put a uniformly random rotation between the two heads. With d the dimension of the stream (one less
where it is centred), and rank(X) = (sum s^2)^2 / sum s^4 over the singular values s of X,

    E[CS^2]   = 1 / d                                                       whatever the spectra
    Var[CS^2] = 2 (1 / rank(A) - 1 / d) (1 / rank(B) - 1 / d) / ((d - 1) (d + 2))

both exactly. So `ratio = CS * sqrt(d)` is 1 by chance, and `z` is CS^2 less its mean, in standard deviations. Two flat
maps of rank r on the same r directions score 1 / sqrt(r), the most that such maps can, and not 1.

Cost: no d_model x d_model matrix. With V = U R (QR), |V O N F^T| = |R_V O (R_F N^T)^T|, so a head is one core of
d_head x d_model, and all senders to a layer are one matrix product:

    d_model * (d_head * n_heads)^2 * n_layers^2 operations for each kind, in blocks of 64 MiB

GPT-2 small: a second for each kind on one core, after the three of `layer_weights`.

It misleads where weights are not what happens. A score knows no positions: a large k-score does not show that the
*previous* token's content moves. It weighs directions by the weights, not by what the stream holds; biases and MLPs in
between are left out, and so are looped models' later calls. z is no p-value: CS^2 has a longer tail than the normal
above, most of all where ranks are low, and trained heads share the stream's few large directions, so that most pairs
of a trained model lie above chance. Compare a receiver's senders with each other (`ranked`), and see what is left
without the largest directions (`remove_top`). What is read is not yet used: patch the path.

Reference:
    Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". The baseline: moments of tr(P H Q H^T) for
    uniformly random orthogonal H, checked by simulation in tests/evidence/test_composition.py.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import ArgumentError, NonFiniteError
from headscope.evidence.composition.result import KINDS, ROUNDING, Composition, PairKind, Scores
from headscope.evidence.copying import through
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId
from headscope.model.load import Source, load
from headscope.model.precision import widened, widest
from headscope.model.weights import LayerWeights, layer_weights
from headscope.records.common import ModelInfo, Provenance

BLOCK = 1 << 24
"""Numbers of a product of cores that are held at once."""


def composition(
    model: Source,
    kinds: Sequence[str] = KINDS,
    *,
    fold: bool = True,
    remove_top: int = 0,
) -> Composition:
    """How much of what each head writes every later head reads, into queries, keys and values.

    CS = |A B|_F / (|A|_F |B|_F), A = W_V W_O of the sender, B = W_Q W_K^T, W_K W_Q^T or W_V W_O of the receiver

    Args:
        model: What `headscope.load` takes, or gives.
        kinds: Of `q`, `k` and `v`.
        fold: Fold each layer's normalisation into its weights. False: the weights as they are.
        remove_top: So many of the largest singular directions of each A and each B are taken out first: what is left
            does not rest on directions that all heads share.

    Returns:
        Every pair's score, with its random baseline and with what the architecture does to the claim. Under grouped
        queries K and V weights are the KV head's, and named so.

    Raises:
        ArgumentError: an unknown kind, no kind, or remove_top that leaves nothing.
        UnsupportedModel: weights that cannot be assigned to heads.
        NonFiniteError: a weight is not a number.
    """
    chosen = _chosen(kinds)
    model = load(model)
    started = time.perf_counter()
    layers = layer_weights(model)
    numbers = composition_scores(layers, chosen, fold=fold, remove_top=remove_top)
    return Composition(
        model=ModelInfo.of(model),
        fold=fold,
        remove_top=remove_top,
        numbers=numbers,
        notes=tuple(_notes(layers, numbers, fold)),
        provenance=Provenance.of(model, kernels=(), seed=None),
        timing=Timing(wall_s=time.perf_counter() - started, tokens=0),
    )


def composition_scores(
    layers: Mapping[int, LayerWeights], kinds: Sequence[str] = KINDS, *, fold: bool = True, remove_top: int = 0
) -> Scores:
    """The same numbers from weights that are at hand; see `composition`.

    Args:
        layers: What `layer_weights` gives, or some of its layers.
        kinds: Of `q`, `k` and `v`.
        fold: Fold normalisations.
        remove_top: Singular directions taken out of each map.

    Raises:
        ArgumentError: an unknown kind, no kind, or remove_top that leaves nothing.
        NonFiniteError: a weight is not a number.
    """
    chosen = _chosen(kinds)
    order = sorted(layers)
    smallest = min(min(layer.w_q.shape[2], layer.w_o.shape[1]) for layer in layers.values())
    if not 0 <= remove_top < smallest:
        raise ArgumentError(f"remove_top={remove_top}; it needs 0 to {smallest - 1}: heads have {smallest} directions.")
    centred = fold and all(layer.norm is not None and layer.norm.centred for layer in layers.values())
    senders = _joined([_sender(layers[at], fold=fold, centred=centred, remove_top=remove_top) for at in order])
    heads = tuple(HeadId(at, head) for at in order for head in range(layers[at].w_q.shape[0]))
    n_heads = len(heads)
    scores = {kind: np.full((n_heads, n_heads), np.nan) for kind in chosen}
    ranks = {kind: np.full(n_heads, np.nan) for kind in chosen}
    start = 0
    for at in order:
        columns = slice(start, start + layers[at].w_q.shape[0])
        for kind in chosen:
            receiver = _receiver(layers[at], kind, fold=fold, centred=centred, remove_top=remove_top)
            ranks[kind][columns] = receiver.rank
            both = np.isfinite(senders.rank[:start, None]) & np.isfinite(receiver.rank)
            scores[kind][:start, columns] = np.where(both, _products(senders.core[:start], receiver.core), np.nan)
        start = columns.stop
    found = Scores(
        heads=heads,
        kv_heads=tuple(layers[head.layer].kv_head(head.head) for head in heads),
        n_dimensions=next(iter(layers.values())).w_q.shape[1] - centred,
        scores=scores,
        sender_rank=senders.rank,
        receiver_rank=ranks,
    )
    for array in (*scores.values(), *ranks.values(), found.sender_rank):
        array.flags.writeable = False
    return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Side:
    """What a layer's heads write, or read with: each head's map, up to a rotation of the side that faces away."""

    core: Float[Tensor, "head rank d_model"]
    """Of Frobenius norm 1, or zero."""
    rank: Float[np.ndarray, " head"]
    """(sum s^2)^2 / sum s^4; NaN where the map is zero."""


def _joined(layers: Sequence[_Side]) -> _Side:
    """All layers' heads as one. Where layers' heads differ in width, the narrower get rows of zeros."""
    width = max(layer.core.shape[1] for layer in layers)
    padded = [torch.nn.functional.pad(layer.core, (0, 0, 0, width - layer.core.shape[1])) for layer in layers]
    first = padded[0]
    return _Side(core=torch.cat([core.to(first) for core in padded]), rank=np.concatenate([one.rank for one in layers]))


def _sender(weights: LayerWeights, *, fold: bool, centred: bool, remove_top: int) -> _Side:
    """W_V W_O of a layer's heads."""
    return _side(weights, _read(weights, "v", fold), _written(weights, fold, centred), remove_top)


def _receiver(weights: LayerWeights, kind: PairKind, *, fold: bool, centred: bool, remove_top: int) -> _Side:
    """W_Q W_K^T, W_K W_Q^T or W_V W_O of a layer's heads."""
    match kind:
        case "q":
            return _side(weights, _read(weights, "k", fold), _read(weights, "q", fold), remove_top)
        case "k":
            return _side(weights, _read(weights, "q", fold), _read(weights, "k", fold), remove_top)
        case "v":
            return _side(weights, _written(weights, fold, centred), _read(weights, "v", fold), remove_top)


def _read(weights: LayerWeights, part: PairKind, fold: bool) -> Float[Tensor, "head d_model rank"]:
    """W_Q, W_K or W_V of every query head, through the layer's normalisation."""
    weight = {"q": weights.w_q, "k": weights.w_k, "v": weights.w_v}[part]
    if fold:
        n_heads, d_model, rank = weight.shape
        folded = through(weights.norm, weight.transpose(0, 1).reshape(d_model, n_heads * rank))
        weight = folded.view(d_model, n_heads, rank).transpose(0, 1)
    if part == "q":
        return weight
    return weight[[weights.kv_head(head) for head in range(weights.w_q.shape[0])]]


def _written(weights: LayerWeights, fold: bool, centred: bool) -> Float[Tensor, "head d_model rank"]:
    """W_O^T of every head, as it reaches the stream."""
    w_o = weights.w_o
    if fold and weights.out_norm is not None:
        w_o = w_o - w_o.mean(2, keepdim=True) if weights.out_norm.centred else w_o
        w_o = w_o * weights.out_norm.gain.to(w_o)
    if centred:
        w_o = w_o - w_o.mean(2, keepdim=True)
    return w_o.mT


def _side(
    weights: LayerWeights,
    far: Float[Tensor, "head d_model rank"],
    near: Float[Tensor, "head d_model rank"],
    remove_top: int,
) -> _Side:
    """`near far^T` of each head: with far = U R, its size and products on the near side are those of `R near^T`."""
    root = torch.linalg.qr(far, mode="r").R
    core = root @ near.mT
    size = _size(core)
    if not bool(torch.isfinite(size).all()):
        raise NonFiniteError(
            f"layer {weights.layer} has weights that are not numbers or overflow {core.dtype}, so no composition can "
            "be computed; use an intact checkpoint."
        )
    least = ROUNDING * _size(root) * _size(near)
    if remove_top:
        wide = widened(core)
        largest = torch.linalg.eigh(wide @ wide.mT).eigenvectors[..., -remove_top:].to(core)
        core = core - largest @ (largest.mT @ core)
        least = torch.maximum(least, ROUNDING * size)
        size = _size(core)
    moved = size > least
    core = torch.where(moved[:, None, None], core / size.clamp(min=torch.finfo(size.dtype).tiny)[:, None, None], 0.0)
    core = core.to(far)
    gram = widened(core @ core.mT)
    rank = torch.where(moved, 1 / gram.square().sum((1, 2)), torch.nan)
    return _Side(core=core, rank=rank.cpu().numpy())


def _size(matrix: Float[Tensor, "head row column"]) -> Float[Tensor, " head"]:
    """Frobenius norms; squares of float32 may overflow, those of float64 do not."""
    return torch.linalg.vector_norm(matrix, dim=(1, 2), dtype=widest(matrix.device))


def _products(
    senders: Float[Tensor, "sender d_v d_model"], receivers: Float[Tensor, "receiver d_far d_model"]
) -> Float[np.ndarray, "sender receiver"]:
    """|A B|_F for each pair of unit cores, some senders at a time."""
    n_receivers, d_far, _ = receivers.shape
    near = receivers.flatten(0, 1).T.to(senders)
    found = np.empty((len(senders), n_receivers))
    step = max(1, BLOCK // (senders.shape[1] * n_receivers * d_far))
    for first in range(0, len(senders), step):
        part = senders[first : first + step]
        block = (part.flatten(0, 1) @ near).square_().view(len(part), -1, n_receivers, d_far)
        found[first : first + step] = block.sum(3).sum(1).cpu().double().sqrt().numpy()
    return found


def _chosen(kinds: Sequence[str]) -> tuple[PairKind, ...]:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        given = f"kind {', '.join(map(repr, unknown))} is not known" if unknown else "no kind is given"
        raise ArgumentError(f"{given}; use some of {', '.join(KINDS)}.")
    return tuple(kind for kind in KINDS if kind in kinds)


def _notes(layers: Mapping[int, LayerWeights], numbers: Scores, fold: bool) -> list[str]:
    """What the architecture does to the claim."""

    def where(those: Sequence[bool]) -> str:
        return "every layer" if all(those) else f"{sum(those)} of {len(those)} layers"

    every = list(layers.values())
    notes: list[str] = []
    if any(shared := [layer.w_k.shape[0] < layer.w_q.shape[0] for layer in every]):
        notes.append(
            f"query heads share key-value heads in {where(shared)}: W_V of a sender and W_K and W_V of a receiver are "
            "those of its kv_head, so pairs with the same kv_head are not independent."
        )
    if any(turned := [layer.rotary for layer in every]):
        notes.append(
            f"rotary embedding turns q and k in {where(turned)}: q- and k-scores hold at offset 0. At offset d the map "
            "is W_Q R_d W_K^T, which reads the same subspace with other weights."
        )
    if any(normed := [layer.qk_norm for layer in every]):
        notes.append(
            f"q and k are normalised after their projection in {where(normed)}: q- and k-scores compare directions; "
            "the size of q and k, which the weights also set, is divided away at each token."
        )
    if any(layer.out_norm is not None for layer in every):
        notes.append(
            "what the heads of a layer write is normalised before it is added: the size, which is set token by token, "
            + ("is left out, the gain folded in." if fold else "and the gain are left out.")
        )
    if not fold and any(layer.norm is not None for layer in every):
        notes.append("normalisations are not folded in: directions are compared as the weights have them.")
    if any(bool((bias != 0).any()) for layer in every for bias in (layer.b_q, layer.b_k, layer.b_v)):
        notes.append("biases of q, k and v are left out: what they add to the stream or to q and k is not composed.")
    silent = [head for head, rank in zip(numbers.heads, numbers.sender_rank, strict=True) if np.isnan(rank)]
    if silent:
        notes.append(f"no score as senders, since they write nothing: {', '.join(map(str, silent))}.")
    for kind, ranks in numbers.receiver_rank.items():
        deaf = [head for head, rank in zip(numbers.heads, ranks, strict=True) if np.isnan(rank)]
        if deaf:
            notes.append(f"no {kind}-score as receivers, since they read nothing: {', '.join(map(str, deaf))}.")
    return notes
