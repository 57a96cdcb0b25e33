"""A model's fingerprint: the same for the same weights, whatever they are called and wherever they are.

    sha256 over the names, shapes and dtypes of all weights, and up to 64 numbers of each, evenly spread

Cost: a few thousand numbers read. It tells models apart, not copies that someone altered on purpose elsewhere.
"""

from __future__ import annotations

import hashlib

import torch

from headscope.model.model import Opened

SAMPLED = 64
"""Numbers read of each weight."""


def fingerprint(model: Opened) -> str:
    """Hexadecimal digits, 64 of them."""
    found = hashlib.sha256()
    for name, weight in sorted(model.module.state_dict().items()):
        if not isinstance(weight, torch.Tensor) or weight.is_meta:
            continue
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        flat = weight.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLED)
        some = flat[::step][:SAMPLED].cpu().double()
        found.update(some.contiguous().numpy().tobytes())
    return found.hexdigest()
