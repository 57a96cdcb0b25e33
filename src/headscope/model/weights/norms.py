"""Normalisations: the one that q, k and v read the stream through, and the one on the output."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.model.load import Model
from headscope.model.taps import TOLERANCE
from headscope.model.weights.recording import (
    N_CODES,
    Call,
    equal,
    refused,
    share_apart,
    share_apart_by_row,
    widened,
)
from headscope.model.weights.tracing import balanced_signs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """A normalisation: out = gain * (x - mean(x) if centred else x) * (a positive number per row) + bias."""

    gain: Float[Tensor, " d_model"]
    """Up to one common positive factor."""
    bias: Float[Tensor, " d_model"]
    """Zero where there is none."""
    centred: bool
    """Whether each row's mean is subtracted: LayerNorm, not RMSNorm."""


def input_norm(
    model: Model, layer: int, block: nn.Module, x: Tensor, before: list[Call], stream: list[Tensor]
) -> Norm | None:
    """The norm between the decoder layer's input and `x`; None where they are the same."""
    if any(equal(x, one) for one in stream):
        return None
    inside = set(block.modules())
    for call in reversed(before):
        if call.module in inside and equal(call.output, x) and any(equal(call.given, one) for one in stream):
            norm = read_norm(call.module, call.given)
            if norm is not None:
                return norm
    raise refused(model, layer, "what its projections read is neither the residual stream nor a normalisation of it")


def output_norm(model: Model, layer: int, output: Tensor, behind: list[Call]) -> Norm | None:
    """The norm that reads the projection's output alone; None where nothing does."""
    for call in behind:
        if equal(call.given, output) and not equal(call.output, output):
            norm = read_norm(call.module, call.given)
            if norm is None:
                raise refused(model, layer, f"a {type(call.module).__name__}, which is no norm, changes its output")
            return norm
    return None


def read_norm(module: nn.Module, rows: Tensor) -> Norm | None:
    """What a module does to rows like these, as a `Norm`; None where it does something else.

    Asked of a wide copy with balanced signs of the rows' own size, which a normalisation gives back as
    gain * sign + bias; the answer is then tried on the rows.
    """
    d_model = rows.shape[-1]
    if sum(parameter.numel() for parameter in module.parameters()) > 4 * d_model:
        return None
    rows = widened(rows).reshape(1, -1, d_model)
    module = copy.deepcopy(module).to(rows.dtype)
    signs = balanced_signs(N_CODES, [d_model], torch.Generator().manual_seed(4)).to(rows)[None]
    size = rows.square().mean().sqrt()
    try:
        there, back, raised = (widened(module(x)) for x in (signs * size, -signs * size, (signs + 1) * size))
        out = widened(module(rows))
    except TypeError:  # it needs more than the rows
        return None
    bias = ((there + back) / 2).mean(1)[0]
    gain = ((there - bias) * signs).mean(1)[0]
    centred = share_apart(raised, there) <= TOLERANCE[torch.float32]
    seen = rows - rows.mean(-1, keepdim=True) if centred else rows
    off = max(share_apart(gain * signs + bias, there), share_apart_by_row(gain * seen, out - bias))
    return Norm(gain=gain, bias=bias, centred=centred) if off <= TOLERANCE[torch.float32] else None
