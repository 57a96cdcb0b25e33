"""TokenSpace in token space: what a head writes, what it looks for, and the virtual head that two of them make.

    ov_table          "what does it write when it attends to X?"  the tokens that the direct path raises most
    qk_table          "what is it looking for?"  the tokens whose keys match a query token's best, among a sample
    virtual_circuit   the receiver's query for token t against its keys of what a sender wrote about token t':

                          M[t, t'] = q(W_E[t]) . k(W_E[t'] W_V W_O)

                      An induction head fed by this sender finds its own token there: M has a dominant diagonal. Its
                      share is that of the tokens t whose largest M[t, t'] is at t' = t, 1 / sample by chance; the same
                      through another head of the sender's layer is the control.

Queries and keys are the model's own: vectors are put into the residual stream (`headscope.model.inject`), so that its
norm, biases, query-key norm and, at a stated offset between query and key, its rotary embedding apply. All of it on a
seeded sample of the vocabulary, since V x V numbers fit nowhere.

It misleads where embeddings are rewritten before the receiver reads them, by an MLP or by heads that attend to their
own token: the stream then holds more than W_E says.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.errors import ArgumentError, TokenError
from headscope.evidence.copying import TokenSpace, through
from headscope.heads import HeadId, ranking
from headscope.model.inject import queries_and_keys
from headscope.model.load import Model, Source, load

OFFSET = 24
"""Tokens between key and query, where the rotary embedding asks for it."""
SAMPLE = 512
"""Tokens drawn of the whole vocabulary but its special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """What belongs to one token."""

    token: int
    """Its id."""
    text: str | None
    """As the tokenizer shows it; None without one."""
    best: tuple[tuple[int, str | None, float], ...]
    """Id, text and value of the tokens that score best, best first."""
    own_rank: int
    """Rank of the token itself, from 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualCircuit:
    """A receiver that looks through a sender, in token space."""

    sender: HeadId
    """Who wrote what the key reads."""
    receiver: HeadId
    """Whose query and key it is."""
    diagonal_share: float
    """Share of tokens that find themselves."""
    control_head: HeadId | None
    """Another head of the sender's layer; None where there is none."""
    control_share: float | None
    """The same through that one: the largest over the sender's layer."""
    chance: float
    """1 / tokens."""
    n_tokens: int
    """Size of the sample."""
    offset: int
    """Tokens between key and query."""


def ov_table(
    model: Source,
    head: HeadId | str,
    tokens: Sequence[int],
    *,
    top: int = 5,
    circuits: TokenSpace | None = None,
) -> tuple[TokenRow, ...]:
    """The tokens that a head raises most along the direct path when it attends to each of these.

    Args:
        model: What `headscope.load` takes, or gives.
        head: Which.
        tokens: Ids that it attends to.
        top: How many raised tokens to give for each.
        circuits: What `TokenSpace(model)` gave, to read the weights once for many heads.

    Raises:
        ArgumentError: no such head, or top below 1.
        TokenError: an id outside the vocabulary, or none.
        UnsupportedModel: weights that cannot be assigned to heads.
    """
    model = load(model)
    (chosen,) = model.named(head)
    circuits = circuits or TokenSpace(model)
    ids = _ids(model, tokens)
    read, write = circuits.ov([chosen])
    raised = (circuits.embedding[ids] @ read) @ (write @ circuits.unembedding.T)
    return _rows(model, ids, torch.arange(raised.shape[1], device=raised.device), raised, top)


def qk_table(
    model: Source,
    head: HeadId | str,
    tokens: Sequence[int],
    *,
    sender: HeadId | str | None = None,
    offset: int = OFFSET,
    top: int = 5,
    seed: int = 0,
    circuits: TokenSpace | None = None,
) -> tuple[TokenRow, ...]:
    """The tokens whose keys match these queries best.

    Args:
        model: What `headscope.load` takes, or gives.
        head: Whose queries and keys.
        tokens: Ids of the query tokens.
        sender: Keys read what this head of an earlier layer wrote about a token; by default the token's embedding.
        offset: Tokens between key and query.
        top: How many to give for each.
        seed: Of the sample of keys, to which the query tokens are added.
        circuits: What `TokenSpace(model)` gave, to read the weights once for many heads.

    Raises:
        ArgumentError: no such head, a sender that is not earlier, top or offset below 1.
        TokenError: an id outside the vocabulary, or none.
        UnsupportedModel: weights that cannot be assigned to heads, or queries and keys that cannot be seen.
    """
    model = load(model)
    (receiver,) = model.named(head)
    circuits = circuits or TokenSpace(model)
    ids = _ids(model, tokens)
    keys = torch.unique(torch.cat([ids, _sample(model, circuits, seed)]))
    streams = circuits.embedding[keys]
    if sender is not None:
        (chosen,) = model.named(sender)
        streams = _written(circuits, chosen, _earlier(chosen, receiver), keys)
    logits = _match(model, receiver, circuits.embedding[ids], streams, offset)
    return _rows(model, ids, keys, logits, top)


def virtual_circuit(
    model: Source,
    sender: HeadId | str,
    receiver: HeadId | str,
    *,
    offset: int = OFFSET,
    seed: int = 0,
    circuits: TokenSpace | None = None,
) -> VirtualCircuit:
    """Do a receiver's queries find their own tokens among what a sender wrote?

    Args:
        model: What `headscope.load` takes, or gives.
        sender: A head of an earlier layer.
        receiver: The head that looks.
        offset: Tokens between key and query.
        seed: Of the sample.
        circuits: What `TokenSpace(model)` gave, to read the weights once for many pairs.

    Raises:
        ArgumentError: no such head, a sender that is not earlier, or an offset below 1.
        UnsupportedModel: weights that cannot be assigned to heads, or queries and keys that cannot be seen.
    """
    model = load(model)
    (writes,), (looks,) = model.named(sender), model.named(receiver)
    _earlier(writes, looks)
    circuits = circuits or TokenSpace(model)
    sample = _sample(model, circuits, seed)
    layer = [HeadId(writes.layer, one) for one in range(model.check.heads[writes.layer])]
    streams = torch.cat([_written(circuits, head, looks, sample) for head in layer])
    logits = _match(model, looks, circuits.embedding[sample], streams, offset)
    n = len(sample)
    own = torch.arange(n, device=logits.device)
    found = {
        head: int((block.argmax(1) == own).sum()) / len(own)
        for head, block in zip(layer, logits.split(n, dim=1), strict=True)
    }
    others = {head: share for head, share in found.items() if head != writes}
    control = min(others, key=lambda head: ranking(others[head], head), default=None)
    return VirtualCircuit(
        sender=writes,
        receiver=looks,
        diagonal_share=found[writes],
        control_head=control,
        control_share=None if control is None else others[control],
        chance=1 / n,
        n_tokens=n,
        offset=offset,
    )


def _match(
    model: Model,
    head: HeadId,
    queries: Float[Tensor, "query d_model"],
    keys: Float[Tensor, "key d_model"],
    offset: int,
) -> Float[Tensor, "query key"]:
    """Q . k of one head at this distance; the key is at position 1."""
    if offset < 1:
        raise ArgumentError(f"offset={offset}; a key is at least 1 token before its query.")
    if model.max_tokens is not None and offset + 2 > model.max_tokens:
        raise ArgumentError(
            f"offset={offset}; {model.id} reads at most {model.max_tokens} tokens, so use at most "
            f"{model.max_tokens - 2}."
        )
    q, _ = queries_and_keys(model, head.layer, queries, 1 + offset)
    _, k = queries_and_keys(model, head.layer, keys, 1)
    dots = q[:, head.head].float() @ k[:, head.head * k.shape[1] // q.shape[1]].float().T
    return dots.to(model.device)


def _written(
    circuits: TokenSpace, sender: HeadId, receiver: HeadId, tokens: Int[Tensor, " token"]
) -> Float[Tensor, "token d_model"]:
    """What a sender adds to the stream when it attends to each token, of the size that the token's embedding has."""
    weights = circuits.layers[sender.layer]
    read = through(weights.norm, weights.w_v[weights.kv_head(sender.head)])
    embedded = circuits.embedding[tokens]
    written = embedded @ read.to(embedded) @ weights.w_o[sender.head].to(embedded)
    if weights.out_norm is not None:
        centre = written.mean(1, keepdim=True) if weights.out_norm.centred else 0.0
        written = (written - centre) * weights.out_norm.gain.to(written)
    size = written.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return written * (embedded.norm(dim=1, keepdim=True) / size)


def _earlier(sender: HeadId, receiver: HeadId) -> HeadId:
    if sender.layer >= receiver.layer:
        raise ArgumentError(f"{sender} does not come before {receiver}; a sender is in an earlier layer.")
    return receiver


def _ids(model: Model, tokens: Sequence[int]) -> Int[Tensor, " token"]:
    ids = [int(one) for one in tokens]
    wrong = [one for one in ids if not 0 <= one < model.n_embeddings]
    if wrong or not ids:
        raise TokenError(
            f"token ids {wrong or ids} do not fit {model.id}; give at least one from 0 to {model.n_embeddings - 1}."
        )
    return torch.tensor(ids, device=model.device)


def _sample(model: Model, circuits: TokenSpace, seed: int) -> Int[Tensor, " token"]:
    special = model.special_token_ids
    pool = [one for one in range(len(circuits.embedding)) if one not in special]
    drawn = np.random.default_rng(seed).permutation(pool)[:SAMPLE]
    return torch.from_numpy(drawn).to(model.device)


def _rows(
    model: Model,
    ids: Int[Tensor, " token"],
    columns: Int[Tensor, " column"],
    values: Float[Tensor, "token column"],
    top: int,
) -> tuple[TokenRow, ...]:
    if top < 1:
        raise ArgumentError(f"top={top}; it needs at least 1.")
    rows: list[TokenRow] = []
    for token, row in zip(ids.tolist(), values, strict=True):
        best = row.topk(min(top, len(row)))
        own = row[columns == token]
        rows.append(
            TokenRow(
                token=token,
                text=_text(model, token),
                best=tuple(
                    (int(columns[place]), _text(model, int(columns[place])), float(value))
                    for value, place in zip(best.values.tolist(), best.indices.tolist(), strict=True)
                ),
                own_rank=int((row > own).sum()) + 1,
            )
        )
    return tuple(rows)


def _text(model: Model, token: int) -> str | None:
    return None if model.tokenizer is None else str(model.tokenizer.decode([token]))
