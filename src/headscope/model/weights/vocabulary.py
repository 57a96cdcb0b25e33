"""How tokens enter the residual stream and how they are read from it, found by running the model on a few prompts.

A module of one's own may keep both tables as parameters. Then the table is the parameter whose rows enter the first
layer, or, where no position is added, what enters for each token; and the unembedding is what the logits are when the
output of the last module before them is replaced by zero and by each unit vector, tried on the prompts themselves.

Cost: one pass over 12 prompts of 4 tokens. Where the model is asked, a pass over d_model + 1 prompts of one token for
each module that is tried, the last first, and one over the vocabulary where no parameter is the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from headscope.errors import UnsupportedModel
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.parallel import is_plain, weight_of
from headscope.model.replay import decoder_layers
from headscope.model.scope import evaluating, hooking
from headscope.model.taps import TOLERANCE
from headscope.model.weights.asked import BATCH, MOST_TRIED, Affine, zero_and_units
from headscope.model.weights.norms import Norm, read_norm
from headscope.model.weights.recording import (
    N_POSITIONS,
    N_PROMPTS,
    Call,
    decoder_layer,
    equal,
    linear_map,
    recorded,
    rows_of,
    share_apart,
    share_apart_by_row,
    tolerance_of,
    watching,
    widened,
)
from headscope.model.weights.tracing import ROUNDING


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
    """Embedding, unembedding and the norm between, by running the model on a few prompts.

    Raises:
        UnsupportedModel: no LM head; an embedding or unembedding that is not of the stream's width, or not linear; or
            an embedding that is normalised, or mixed over positions, before the first layer.
    """
    with torch.no_grad(), evaluating(model.module):
        return _vocabulary(model)


def _refuse_vocabulary(model: Model, why: str) -> NoReturn:
    raise UnsupportedModel(
        f"{model.id} ({model.family}): {why}, so its tokens cannot be read off the residual stream; "
        "choose a model with one embedding and one unembedding of the stream's width."
    )


def _vocabulary(model: Model) -> Vocabulary:
    head, own = model.backbone.unembedding, not isinstance(model.module, PreTrainedModel)
    if head is None and not own:
        _refuse_vocabulary(model, "it has no language-model head")
    random = torch.Generator().manual_seed(5)
    tokens = torch.randint(model.n_embeddings, (N_PROMPTS, N_POSITIONS), generator=random).to(model.device)
    blocks = decoder_layers(model) or [decoder_layer(model, layer) for layer in sorted(model.route.layers.values())]
    record = recorded(model, tokens, set() if head is None else {head}, {blocks[0]})
    first = record.begun.get(blocks[0], [])
    stream = rows_of(widened(first[0]), *tokens.shape) if first else None
    if stream is None:
        _refuse_vocabulary(model, "its first layer does not see one row for every token")
    if head is None:
        matrix, final = _asked_unembedding(model, tokens, record.calls, stream.shape[-1])
    else:
        matrix, final = _unembedding(model, head, tokens, record.calls)
    embedding: Any = model.backbone.embedding
    table = None if embedding is None else widened(weight_of(embedding))
    if table is None or (own and table.shape[1] != stream.shape[-1]):
        table = _asked_embedding(model, blocks[0], tokens, stream)
    widths = table.shape[1], stream.shape[-1], final.shape[-1]
    if len(set(widths)) > 1:
        _refuse_vocabulary(model, "its embedding, stream and unembedding are {}, {} and {} wide".format(*widths))
    factor = _factor(table, tokens, stream, tolerance_of(model))
    if factor is None:
        _refuse_vocabulary(model, "its embedding is normalised or otherwise changed before the first layer")
    n_tokens = min(len(table), matrix.shape[1])
    return Vocabulary(
        embedding=table[:n_tokens] * factor,
        unembedding=matrix.T[:n_tokens].to(table.device, copy=True),
        norm=_final_norm(model, final, record.calls, blocks),
    )


def _factor(
    table: Float[Tensor, "token d_model"],
    tokens: Int[Tensor, "prompt position"],
    stream: Float[Tensor, "prompt position d_model"],
    tolerance: float,
) -> Tensor | None:
    """The factor f where the stream is f * table[token] and one row for each position; None where it is not."""
    known, entered = (rows - rows.mean(0) for rows in (table[tokens.to(table.device)], stream.to(table)))
    factor = (known * entered).sum() / known.square().sum()
    factor = factor.where((factor - 1).abs() > ROUNDING, 1.0)
    return factor if share_apart(factor * known, entered) <= tolerance else None


def _asked_embedding(
    model: Model, block: nn.Module, tokens: Int[Tensor, "prompt position"], stream: Tensor
) -> Float[Tensor, "token d_model"]:
    """The parameter whose rows enter the first layer; without one, what enters, where no position is added to it."""
    tolerance = tolerance_of(model)
    for table in _tables(model, stream.shape[-1]):
        if _factor(table, tokens, stream, tolerance) is not None:
            return table
    rows: list[Tensor] = []

    def begin(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows.append(widened(args[0] if args else named["hidden_states"]).reshape(-1, stream.shape[-1]).clone())

    with hooking([block], before=begin):
        for ids in torch.split(torch.arange(model.n_embeddings, device=model.device)[:, None], BATCH):
            model.run(ids, _leave, stop_at_last=True)
    table = torch.cat(rows)
    if len(table) != model.n_embeddings or _factor(table, tokens, stream, tolerance) is None:
        _refuse_vocabulary(model, "what enters its first layer is not a row of one table and one for each position")
    if share_apart(table[tokens], stream) > tolerance:
        _refuse_vocabulary(
            model, "no parameter is its embedding, and what enters its first layer holds the position too"
        )
    return table


def _tables(model: Model, d_model: int) -> Iterator[Float[Tensor, "token d_model"]]:
    """Parameters and buffers with a row, or a column, of the stream's width for each token."""
    for held in (*model.module.parameters(), *model.module.buffers()):
        if held.dim() == 2 and held.is_floating_point() and is_plain(held):
            for table in (held, held.T):
                if len(table) >= model.n_embeddings and table.shape[1] == d_model:
                    yield widened(table)


def _unembedding(
    model: Model, head: nn.Module, tokens: Tensor, calls: list[Call]
) -> tuple[Float[Tensor, "d_model token"], Tensor]:
    """The map of the module that gives the logits, and what it reads."""
    last = next((call for call in reversed(calls) if call.module is head), None)
    if last is None or rows_of(last.given, *tokens.shape) is None:
        _refuse_vocabulary(model, "its language-model head does not see one row for every token")
    found = linear_map(last, tolerance_of(model))
    if found is None:
        _refuse_vocabulary(model, "its unembedding does not compute what its weight says")
    return found[0], last.given


def _asked_unembedding(
    model: Model, tokens: Tensor, calls: list[Call], d_model: int
) -> tuple[Float[Tensor, "d_model token"], Tensor]:
    """The logits as an affine map of the last module's output of which they are one, and that output."""
    wanted = model.backbone.output(model.run(tokens, _leave))
    last = {call.module: call.output for call in calls if call.output.shape[-1] == d_model}
    for module, output in list(reversed(last.items()))[:MOST_TRIED]:
        given = rows_of(widened(output), *tokens.shape)
        if given is None:
            continue
        answers: list[Tensor] = []
        for rows in zero_and_units(d_model):

            def instead(one: nn.Module, taken: Tensor, gave: Tensor, at: Any = module, rows: Any = rows) -> Any:
                return rows.to(gave).view(gave.shape) if one is at and gave.numel() == rows.numel() else None

            ids = torch.zeros(len(rows), 1, dtype=torch.int64, device=model.device)
            with watching(model.module, instead):
                answers.append(widened(model.backbone.output(model.run(ids, _leave))[:, 0]))
        found = Affine.of(torch.cat(answers))
        if found.apart(given, widened(wanted)) <= tolerance_of(model):
            return found.matrix, output
    _refuse_vocabulary(
        model, "no module's output gives its logits by a linear map (a soft-cap, or a norm that is no module)"
    )


def _leave(attention: Attention) -> None:
    return None


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
