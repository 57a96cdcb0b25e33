"""Several devices on one processor: tensors that name the device they lie on, and that refuse to meet others.

A `Placed` tensor computes as any other, but says that it lies on `cpu:0` or `cpu:1`. An operation whose tensors lie on
different devices raises, with PyTorch's own exceptions to that rule: copies, indices on the host, and numbers without
dimensions. Plain tensors lie on the host, which is a third device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

FIRST, SECOND = torch.device("cpu", 0), torch.device("cpu", 1)

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}


class Placed(Tensor):
    """A tensor on a device that this machine does not have."""

    held: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, held, place):
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="cpu",
            dispatch_device=True,
            requires_grad=held.requires_grad,
        )
        made.held, made.place = held.detach(), place
        return made

    def __repr__(self):
        return f"Placed({self.held!r}, {self.place})"

    def tolist(self):
        return self.held.tolist()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError(f"can't convert {self.place} device type tensor to numpy")
        return self.held.numpy(force=True)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Made(TorchDispatchMode):
    """New tensors lie where they were asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Listed(TorchFunctionMode):
    """`torch.tensor(values, device=...)` copies inside PyTorch, unseen: here in two steps."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        place = kwargs.pop("device", None) if func in (torch.tensor, torch.as_tensor) else None
        made = func(*args, **kwargs)
        return made if place is None else made.to(place)


@contextmanager
def two_devices() -> Iterator[None]:
    """Within the block tensors can be made on `FIRST` and `SECOND`, and moved there."""
    with _Listed(), _Made():
        yield


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return args[0].place
    here = _meeting(func, args, kwargs)
    if kwargs.get("device") is not None:
        asked = torch.device(kwargs["device"])
        here, kwargs = None if asked.index is None else asked, kwargs | {"device": "cpu"}
    out = func(*tree_map_only(Placed, _held, args), **tree_map_only(Placed, _held, kwargs))
    if here is None:
        return out
    placed = tree_map_only(Tensor, lambda one: Placed(one, here), out)
    return return_and_correct_aliasing(func, args, kwargs, placed)


def _meeting(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The one device on which an operation's tensors lie; None for the host."""
    if func in COPIES:
        return _place(args[0])
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    if func in INDEXED:
        on_host = {id(one) for one in tree_leaves(args[1]) if _place(one) is None}
        tensors = [one for one in tensors if id(one) not in on_host]
    found = {_place(one) for one in tensors if one.dim() or _place(one) is not None}
    if len(found) > 1:
        raise RuntimeError(f"{func}: expected all tensors on one device, found {sorted(map(str, found))}")
    return found.pop() if found else None


def _place(one: Any) -> torch.device | None:
    return one.place if isinstance(one, Placed) else None


def _held(one: Placed) -> Tensor:
    return one.held


def spread(hf: nn.Module, places: dict[str, torch.device]) -> nn.Module:
    """Put modules on devices as a device map does: their weights lie there, and hooks bring there what they are given.

    A weight that two modules share lies with the first.
    """
    made: dict[int, nn.Parameter] = {}
    for name, place in places.items():
        module = hf.get_submodule(name)
        for part in module.modules():
            for key, weight in part._parameters.items():
                if weight is not None and not isinstance(weight, Placed):
                    if id(weight) not in made:
                        made[id(weight)] = nn.Parameter(Placed(weight.data, place), requires_grad=False)
                    part._parameters[key] = made[id(weight)]
            for key, buffer in part._buffers.items():
                if buffer is not None and not isinstance(buffer, Placed):
                    part._buffers[key] = Placed(buffer, place)
        add_hook_to_module(module, AlignDevicesHook(execution_device=place))
    add_hook_to_module(hf, AlignDevicesHook(execution_device=FIRST, io_same_device=True))
    return hf
