"""The same function with other weights: what a verdict must not depend on.

    v_o        each head's values are mixed by a matrix, its output projection by the inverse; sizes change 50-fold
    q_k        the same of queries and keys
    stream     the residual stream is turned, about the axis that LayerNorm's centring takes away
    heads      the heads of each layer change places

For GPT-2 models whose normalisations have one gain for all directions and no bias, as the hand-built ones have; the
last takes any GPT-2. Up to rounding the logits are the same.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import copy
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from headscope.heads import HeadId

Reparametrisation = Literal["v_o", "q_k", "stream", "heads"]
CHANGES: tuple[Reparametrisation, ...] = get_args(Reparametrisation)
SIZE = 50.0


def reparametrised(
    model: GPT2LMHeadModel, change: Reparametrisation, *, seed: int = 0
) -> tuple[GPT2LMHeadModel, dict[HeadId, HeadId]]:
    """A copy of a model with other weights and the same logits, and where each head went."""
    random = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    config = model.config
    n_heads, d_model = config.n_head, config.n_embd
    d_head = d_model // n_heads
    where = {HeadId(layer, head): HeadId(layer, head) for layer in range(config.n_layer) for head in range(n_heads)}
    turn = _turned_about_ones(d_model, random) if change == "stream" else None
    with torch.no_grad():
        for layer, block in enumerate(model.transformer.h):
            attention: Any = block.attn
            mlp: Any = block.mlp
            weight = attention.c_attn.weight.view(d_model, 3, n_heads, d_head)
            bias = attention.c_attn.bias.view(3, n_heads, d_head)
            out = attention.c_proj.weight.view(n_heads, d_head, d_model)
            if change in ("v_o", "q_k"):
                for head in range(n_heads):
                    size = SIZE ** float(2 * torch.rand((), generator=random) - 1)
                    mix = (torch.linalg.qr(_normal(d_head, random)).Q * size).to(weight)
                    undo = torch.linalg.inv(mix.double()).to(weight)
                    for kind, by in ((2, mix),) if change == "v_o" else ((0, mix), (1, undo.T)):
                        weight[:, kind, head] = weight[:, kind, head] @ by
                        bias[kind, head] = bias[kind, head] @ by
                    if change == "v_o":
                        out[head] = undo @ out[head]
            elif change == "heads":
                order = torch.randperm(n_heads, generator=random)
                weight.copy_(weight[:, :, order].clone())
                bias.copy_(bias[:, order].clone())
                out.copy_(out[order].clone())
                where |= {HeadId(layer, old): HeadId(layer, new) for new, old in enumerate(order.tolist())}
            elif turn is not None:
                for read in (attention.c_attn.weight, mlp.c_fc.weight):
                    read.copy_(_times(turn.T, read))
                for write in (attention.c_proj, mlp.c_proj):
                    write.weight.copy_(_times(write.weight, turn))
                    write.bias.copy_(_times(write.bias, turn))
        if turn is not None:
            for table in (model.transformer.wte.weight, model.transformer.wpe.weight, model.lm_head.weight):
                table.copy_(_times(table, turn))
    return model, where


def _times(one: Tensor, two: Tensor) -> Tensor:
    return (one.double() @ two.double()).float()


def _turned_about_ones(size: int, random: torch.Generator) -> Tensor:
    """A random orthogonal matrix that leaves the all-ones vector as it is."""
    columns = _normal(size, random)
    columns[:, 0] = 1.0
    basis = torch.linalg.qr(columns).Q
    inner = torch.eye(size, dtype=torch.float64)
    inner[1:, 1:] = torch.linalg.qr(_normal(size - 1, random)).Q
    return basis @ inner @ basis.T


def _normal(size: int, random: torch.Generator) -> Tensor:
    return torch.randn((size, size), generator=random, dtype=torch.float64)
