"""How tokens enter the residual stream and how they are read from it, found by running the model on single tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.errors import UnsupportedModel
from headscope.model.load import Model
from headscope.model.parallel import weight_of
from headscope.model.replay import decoder_layers
from headscope.model.scope import evaluating
from headscope.model.taps import TOLERANCE
from headscope.model.weights.norms import Norm, read_norm
from headscope.model.weights.recording import (
    N_CODES,
    Call,
    decoder_layer,
    equal,
    linear_map,
    recorded,
    rows_of,
    share_apart,
    share_apart_by_row,
    tolerance_of,
    widened,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """How tokens enter the residual stream, and how they are read from it: the ids below both tables' lengths.

    On the embedding's device.
    """

    embedding: Float[Tensor, "token d_model"]
    """What a token adds to the stream before the first layer, with the family's factor; positions left out."""
    unembedding: Float[Tensor, "token d_model"]
    """Logits are `x @ unembedding.T`; a bias, a factor or a soft-cap on them is left out."""
    norm: Norm | None
    """Through which the unembedding reads the stream."""


def vocabulary(model: Model) -> Vocabulary:
    """Embedding, unembedding and the norm between, by running the model on single tokens.

    Raises:
        UnsupportedModel: no LM head; an embedding or unembedding that is not of the stream's width, or not linear; or
            an embedding that is normalised before the first layer.
    """
    with torch.no_grad(), evaluating(model.module):
        return _vocabulary(model)


def _refuse_vocabulary(model: Model, why: str) -> NoReturn:
    raise UnsupportedModel(
        f"{model.id} ({model.family}): {why}, so its tokens cannot be read off the residual stream; "
        "choose a model with one embedding and one unembedding of the stream's width."
    )


def _vocabulary(model: Model) -> Vocabulary:
    head = model.backbone.unembedding
    if head is None:
        _refuse_vocabulary(model, "it has no language-model head")
    random = torch.Generator().manual_seed(5)
    tokens = torch.randperm(model.n_embeddings, generator=random)[:N_CODES, None].to(model.device)
    blocks = decoder_layers(model) or [decoder_layer(model, min(model.route.layers.values()))]
    record = recorded(model, tokens, {head}, {blocks[0]})
    first = record.begun.get(blocks[0], [])
    stream = rows_of(widened(first[0]), len(tokens), 1) if first else None
    last = next((call for call in reversed(record.calls) if call.module is head), None)
    final = rows_of(last.given, len(tokens), 1) if last else None
    if stream is None or last is None or final is None:
        _refuse_vocabulary(model, "its first layer, or its language-model head, does not see one row for every token")
    embedding: Any = model.backbone.embedding
    table = widened(weight_of(embedding))
    widths = table.shape[1], stream.shape[-1], final.shape[-1]
    if len(set(widths)) > 1:
        _refuse_vocabulary(model, "its embedding, stream and unembedding are {}, {} and {} wide".format(*widths))
    known, entered = (rows - rows.mean(0) for rows in (table[tokens[:, 0]], stream[:, 0].to(table)))
    factor = (known * entered).sum() / known.square().sum()
    if share_apart(factor * known, entered) > tolerance_of(model):
        _refuse_vocabulary(model, "its embedding is normalised or otherwise changed before the first layer")
    unembedding = linear_map(last, tolerance_of(model))
    if unembedding is None:
        _refuse_vocabulary(model, "its unembedding does not compute what its weight says")
    n_tokens = min(len(table), unembedding[0].shape[1])
    return Vocabulary(
        embedding=table[:n_tokens] * factor,
        unembedding=unembedding[0].T[:n_tokens].to(table.device, copy=True),
        norm=_final_norm(model, last.given, record.calls, blocks),
    )


def _final_norm(model: Model, final: Tensor, calls: list[Call], blocks: list[nn.Module]) -> Norm | None:
    """The norm between the last layer's output and what the unembedding reads, up to a factor."""
    written = [call.output for call in calls if call.module in blocks]
    if any(_parallel(final, one) for one in written):
        return None
    for call in reversed(calls):
        if _parallel(final, call.output) and any(equal(call.given, one) for one in written):
            norm = read_norm(call.module, call.given)
            if norm is not None:
                return norm
    _refuse_vocabulary(model, "what its unembedding reads is neither the residual stream nor a normalisation of it")


def _parallel(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal up to one positive factor."""
    if first.numel() != second.numel():
        return False
    return (
        share_apart_by_row(widened(second.to(first.device)).reshape(1, -1), widened(first).reshape(1, -1))
        <= TOLERANCE[torch.float32]
    )
