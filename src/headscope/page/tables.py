"""What single heads write and look for, token by token, for the few heads whose cards show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headscope.errors import UnsupportedModel
from headscope.evidence.circuit.result import Circuit
from headscope.evidence.copying import TokenSpace
from headscope.evidence.token_space import OFFSET, TokenRow, ov_table, qk_table
from headscope.heads import HeadId
from headscope.model.load import Model

TOP = 5
"""Tokens in a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadTables:
    """One head in token space."""

    head: HeadId
    """Which."""
    ov: tuple[TokenRow, ...]
    """What it writes when it attends to each token."""
    qk: tuple[TokenRow, ...] | None
    """What it looks for, reading each token; None where queries and keys cannot be seen."""
    sender: HeadId | None
    """Whose writing its keys read in that; None for the tokens' embeddings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTables:
    """Tables of some heads, or why there are none."""

    heads: tuple[HeadTables, ...]
    """Which heads have them."""
    reason: str | None
    """Why no head has any."""


def token_tables(
    model: Model, heads: Sequence[HeadId], tokens: Sequence[int], circuit: Circuit | None, *, seed: int = 0
) -> TokenTables:
    """Tables of these heads for these tokens; keys are read through a head's strongest sender, where it has one."""
    if not heads:
        return TokenTables(heads=(), reason="no head has a role")
    try:
        circuits = TokenSpace(model, seed=seed)
    except UnsupportedModel as error:
        return TokenTables(heads=(), reason=str(error))
    senders: dict[HeadId, HeadId] = {}
    for edge in circuit.edges if circuit is not None else ():
        senders.setdefault(edge.receiver, edge.sender)
    offset = OFFSET if model.max_tokens is None else min(OFFSET, max(1, model.max_tokens - 2))
    made: list[HeadTables] = []
    for head in heads:
        sender = senders.get(head)
        try:
            qk = qk_table(model, head, tokens, sender=sender, offset=offset, top=TOP, seed=seed, circuits=circuits)
        except UnsupportedModel:
            qk = None
        made.append(
            HeadTables(
                head=head,
                ov=ov_table(model, head, tokens, top=TOP, circuits=circuits),
                qk=qk,
                sender=sender if qk is not None else None,
            )
        )
    return TokenTables(heads=tuple(made), reason=None)
