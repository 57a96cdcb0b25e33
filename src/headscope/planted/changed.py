"""A GPT-2 with one head changed, and nothing else: what a comparison of the two must find.

    silenced        its values are zero: it attends as before and writes nothing
    without_query   its queries are zero: every key of its has the same score
    rotated         its queries and keys are turned into those of another head of its layer: it takes that head's role
    keys_adapted    a low-rank matrix A B is added to its keys, as a LoRA does: W_K + s A B

The first three work whatever the head. A LoRA of a given size may change much or nothing: random directions that no
query reads leave attention as it was. `keys_adapted` therefore takes the size, and who uses it measures what it did.
"""

# pyright: reportUnknownVariableType=false
from __future__ import annotations

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from headscope.heads import HeadId

QUARTER_TURN = math.pi / 2


def silenced(model: GPT2LMHeadModel, head: HeadId) -> GPT2LMHeadModel:
    """A copy in which one head writes nothing."""
    return _zeroed(model, head, "value")


def without_query(model: GPT2LMHeadModel, head: HeadId) -> GPT2LMHeadModel:
    """A copy in which one head asks nothing."""
    return _zeroed(model, head, "query")


def rotated(model: GPT2LMHeadModel, head: HeadId, into: int, *, angle: float = QUARTER_TURN) -> GPT2LMHeadModel:
    """A copy in which a head looks as another of its layer does: cos(angle) its own q and k, sin(angle) the other's."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for part in ("query", "key"):
            for own, other in zip(_of(changed, head, part), _of(model, HeadId(head.layer, into), part), strict=True):
                own.mul_(math.cos(angle)).add_(other, alpha=math.sin(angle))
    return changed


def keys_adapted(model: GPT2LMHeadModel, head: HeadId, *, size: float, rank: int = 1, seed: int = 0) -> GPT2LMHeadModel:
    """A copy with A B added to one head's keys, A and B normal, of `size` times the norm of the keys' own weight."""
    changed = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    weight, _ = _of(changed, head, "key")
    d_model, d_head = weight.shape
    change = torch.randn(d_model, rank, generator=random) @ torch.randn(rank, d_head, generator=random)
    with torch.no_grad():
        weight += change * (size * weight.norm() / change.norm())
    return changed


def _zeroed(model: GPT2LMHeadModel, head: HeadId, part: Literal["query", "value"]) -> GPT2LMHeadModel:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in _of(changed, head, part):
            tensor.zero_()
    return changed


def _of(model: GPT2LMHeadModel, head: HeadId, part: Literal["query", "key", "value"]) -> tuple[Tensor, Tensor]:
    """Weight [d_model, d_head] and bias [d_head] of a head's q, k or v: views."""
    d_model, d_head = model.config.n_embd, model.config.n_embd // model.config.n_head
    attention: Any = model.transformer.h[head.layer].attn
    first = {"query": 0, "key": 1, "value": 2}[part] * d_model + head.head * d_head
    mine = slice(first, first + d_head)
    return attention.c_attn.weight[:, mine], attention.c_attn.bias[mine]
