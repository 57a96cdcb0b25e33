"""Weights that are no plain tensor, as quantising libraries keep them: int8 and scales behind one face."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Packed(Tensor):
    """Rows of int8 with a scale each. It can be multiplied, detached, copied and dequantised, and nothing else."""

    packed: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, packed: Tensor, scale: Tensor) -> Packed:
        return Tensor._make_wrapper_subclass(cls, packed.shape, dtype=scale.dtype, device=packed.device)  # type: ignore[attr-defined]

    def __init__(self, packed: Tensor, scale: Tensor) -> None:
        self.packed, self.scale = packed, scale

    def dequantize(self) -> Tensor:
        """The weight as it is multiplied with."""
        return self.packed * self.scale

    def __repr__(self, **named: Any) -> str:
        return f"Packed({tuple(self.shape)})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            given, weight, *bias = args
            return F.linear(given, weight.packed * weight.scale, *bias, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return Packed(args[0].packed, args[0].scale)
        raise NotImplementedError(f"{func} is not implemented for packed weights")


def quantised(hf: Any, *, bits: int = 8, group: int | None = None) -> Any:
    """The model with every linear layer but its unembedding packed, in place.

    Rounded to the nearest of 2 ** bits - 1 values, symmetric about zero, with one scale for each row, or for each
    `group` weights of a row where that divides it. Numbers of 4 bits are kept in int8: what counts is their rounding.
    """
    most = 2 ** (bits - 1) - 1
    for name, part in hf.named_modules():
        if isinstance(part, nn.Linear) and name != "lm_head":
            weight = part.weight.data
            n_in = weight.shape[1]
            size = group if group is not None and n_in % group == 0 else n_in
            scale = (weight.unflatten(1, (-1, size)).abs().amax(2) / most).repeat_interleave(size, 1)
            packed = torch.where(scale > 0, weight / scale, 0.0).round().to(torch.int8)
            part.weight = nn.Parameter(Packed(packed, scale), requires_grad=False)
    return hf
