"""The widest numbers that a device computes with.

float64, where the device has it. Apple's MPS has none, nor have some of Intel's GPUs: there float32, in which sums over
a prompt agree with float64 ones to about 1e-6. What leaves the device is widened on the host instead.
"""

from __future__ import annotations

import torch
from torch import Tensor


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device refuses it."""
    if device.type == "mps":
        return torch.float32
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float64


def widened(numbers: Tensor) -> Tensor:
    """The same numbers in the widest type of the device that holds them."""
    return numbers.to(widest(numbers.device))


def brought(numbers: Tensor, device: torch.device) -> Tensor:
    """The same numbers on a device, narrowed before they go where it refuses their type."""
    known = numbers if numbers.dtype != torch.float64 else numbers.to(widest(device))
    return known.to(device)
