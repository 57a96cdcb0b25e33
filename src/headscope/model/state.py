"""Whether a module is still the one that was checked: the same tree, the same weights, the same hooks.

    every module by identity, with its hooks, a forward put on it and how its attention is set; every weight by
    identity, storage, version counter and up to 16 of its numbers, evenly spread

PyTorch counts each change of a weight in place, except through `.data`; the numbers read are for those. What it does
not see: an edit through `.data` of so few numbers that none of these is among them, which leaves a model's layout as it
was. Cost: a few microseconds of Python and one small read for each weight; no weight is read whole.
"""

# pyright: reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import functools
import hashlib
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from headscope.model.model import Model
    from headscope.model.selfcheck import Check

SAMPLED = 16
"""Numbers read of each weight."""

_Found = TypeVar("_Found")


def state_of(module: nn.Module) -> str:
    """Hexadecimal digits that change when the module does."""
    found = hashlib.sha256()
    numbers: dict[torch.device, list[Tensor]] = {}
    for name, part in module.named_modules():
        setting = getattr(getattr(part, "config", None), "_attn_implementation", None)
        found.update(f"{name} {id(part)} {type(part).__qualname__} {[*_put_on(part)]} {setting}\n".encode())
        for key, weight in (*part._parameters.items(), *part._buffers.items()):
            if weight is None:
                continue
            found.update(f"{key} {_identity(weight)}\n".encode())
            if (some := _some_of(weight)) is not None:
                numbers.setdefault(some.device, []).append(some)
    for each in numbers.values():
        found.update(torch.cat(each).cpu().numpy().tobytes())
    return found.hexdigest()


def _put_on(part: nn.Module) -> Iterator[int]:
    """Hooks and a forward that someone put on this module; ours, which last for one pass, are not among them."""
    hooks = (*part._forward_pre_hooks.values(), *part._forward_hooks.values(), part.__dict__.get("forward"))
    return (id(one) for one in hooks if one is not None and not _ours(one))


def _ours(hook: Any) -> bool:
    return (getattr(hook, "__module__", None) or "").startswith("headscope.")


def _identity(weight: Tensor) -> tuple[Any, ...]:
    try:
        storage, version = weight.data_ptr(), weight._version
    except (RuntimeError, NotImplementedError):  # kinds of tensor without a storage, or made in inference mode
        storage = version = 0
    return id(weight), storage, version, tuple(weight.shape), weight.dtype, weight.device


def _some_of(weight: Tensor) -> Tensor | None:
    """Evenly spread numbers of a weight [number]; None where it holds none that can be read one by one."""
    if weight.is_meta or weight.numel() == 0 or type(weight) not in (Tensor, nn.Parameter, nn.Buffer):
        return None
    held, step = weight.detach(), max(1, weight.numel() // SAMPLED)
    try:
        if held.is_contiguous():
            some = held.view(-1)[::step][:SAMPLED]
        else:
            at = torch.arange(0, held.numel(), step, device=held.device)[:SAMPLED]
            some = held[torch.unravel_index(at, held.shape)]
        return (torch.view_as_real(some).flatten() if some.is_complex() else some).to(torch.float32)
    except (RuntimeError, NotImplementedError):  # packed and sparse kinds, whose identity and version are all there is
        return None


def once(find: Callable[[Model], _Found]) -> Callable[[Model], _Found]:
    """`find`, called once for each model and again after the model was checked again."""
    kept: weakref.WeakKeyDictionary[nn.Module, tuple[Check, _Found]] = weakref.WeakKeyDictionary()

    @functools.wraps(find)
    def found(model: Model) -> _Found:
        if model.module not in kept or kept[model.module][0] is not model.check:
            kept[model.module] = (model.check, find(model))
        return kept[model.module][1]

    return found
