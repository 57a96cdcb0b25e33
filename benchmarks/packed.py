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


def quantised(hf: Any) -> Any:
    """The model with every linear layer but its unembedding packed, in place."""
    for name, part in hf.named_modules():
        if isinstance(part, nn.Linear) and name != "lm_head":
            scale = part.weight.data.abs().amax(1, keepdim=True) / 127
            packed = (part.weight.data / scale).round().to(torch.int8)
            part.weight = nn.Parameter(Packed(packed, scale), requires_grad=False)
    return hf
