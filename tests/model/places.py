"""Several devices on one processor: tensors that name the device they lie on, and that refuse to meet others.

A `Placed` tensor computes as any other, but says that it lies on `cpu:0` or `cpu:1`, or on a GPU. An operation whose
tensors lie on different devices raises, with PyTorch's own exceptions to that rule: copies, indices on the host, and
numbers without dimensions. Plain tensors lie on the host, which is a third device.

What a GPU adds: CUDA's fused attention gives shapes and types as PyTorch's own meta kernels say, and real numbers; MPS
and an XPU refuse float64. PyTorch's C++ does not take part: there these tensors lie on `cpu:2` to `cpu:4`, so a model's
own scaled-dot-product attention picks its kernel as on a processor, and no kernel of a GPU ever runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

FIRST, SECOND = torch.device("cpu", 0), torch.device("cpu", 1)

CUDA, MPS, XPU = torch.device("cuda", 0), torch.device("mps", 0), torch.device("xpu", 0)
"""GPUs that are imitated; the XPU is one of those without float64."""
BEHIND = {CUDA: torch.device("cpu", 2), MPS: torch.device("cpu", 3), XPU: torch.device("cpu", 4)}
"""Where PyTorch's own C++ believes them to be: its guards know no CUDA in a build without it."""
FACES = {place: face for face, place in BEHIND.items()}

aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}
FUSED = {aten._scaled_dot_product_efficient_attention.default, aten._scaled_dot_product_flash_attention.default}
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
        made.held, made.place = held.detach(), BEHIND.get(place, place)
        return made

    @property
    def device(self):
        return FACES.get(self.place, self.place)

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


@contextmanager
def gpu() -> Iterator[None]:
    """Within the block tensors can be made on these GPUs; the CUDA device is of compute capability 9.0."""
    with (
        mock.patch("torch.cuda._lazy_init", return_value=None),
        mock.patch("torch.xpu._lazy_init", return_value=None),
        mock.patch("torch.cuda.get_device_capability", return_value=(9, 0)),
        mock.patch("torch.xpu.get_device_properties", return_value=SimpleNamespace(has_fp64=False)),
        two_devices(),
    ):
        yield


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.prim.device.default:
        return args[0].place
    here = _meeting(func, args, kwargs)
    if func in FUSED and here == BEHIND[CUDA]:
        return _fused(func, args, kwargs)
    before = here
    if kwargs.get("device") is not None:
        asked = torch.device(kwargs["device"])
        here, kwargs = _named(asked), kwargs | {"device": "cpu"}
    out = func(*tree_map_only(Placed, _held, args), **tree_map_only(Placed, _held, kwargs))
    narrow = {BEHIND[MPS], BEHIND[XPU]} & {before, here}
    if narrow and any(one.dtype == torch.float64 for one in tree_leaves(out) if isinstance(one, Tensor)):
        raise TypeError(f"{func}: {FACES[narrow.pop()].type} doesn't support float64")
    if here is None:
        return out
    placed = tree_map_only(Tensor, lambda one: Placed(one, here), out)
    return return_and_correct_aliasing(func, args, kwargs, placed)


def _fused(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Fused attention on CUDA: PyTorch's meta kernel says what comes out, the definition fills z and lse.

    Rows that pad lse hold NaN, so that who reads them is found out.
    """
    mode = FakeTensorMode()
    with mode:
        said = func(*tree_map_only(Placed, lambda one: faked(mode, one.held), args), **kwargs)
    q, k, v = (one.held for one in args[:3])
    for one in (q, k, v):
        if one.shape[-1] % 8 or one.shape[1] != q.shape[1] or one.stride(-1) != 1:
            raise RuntimeError(f"{func}: heads of {one.shape}, strides {one.stride()}: no such kernel")
    spelt = {one.name: one.default_value for one in func._schema.arguments}  # what is left out has its default
    spelt |= dict(zip(spelt, args, strict=False)) | kwargs
    logits = q.float() @ k.float().mT * spelt["scale"]
    if (bias := spelt.get("attn_bias")) is not None:
        bias = bias.held
        if bias.dtype != q.dtype or bias.shape != logits.shape or any(one % 16 for one in bias.stride()[:-1]):
            raise RuntimeError(f"{func}: a bias of {bias.dtype} {bias.shape}, strides {bias.stride()}: no such kernel")
        logits = logits + bias.float()
    if spelt["is_causal"]:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    lse = torch.full(said[1].shape, torch.nan)
    lse[..., : q.shape[2]] = logits.logsumexp(-1)
    z = (logits.softmax(-1) @ v.float()).to(said[0].dtype)
    assert (z.shape, lse.dtype, str(said[0].device)) == (said[0].shape, said[1].dtype, "cuda:0")
    return Placed(z, CUDA), Placed(lse, CUDA), *said[2:]


def faked(mode: FakeTensorMode, like: Tensor, device: torch.device = CUDA) -> FakeTensor:
    """A tensor without numbers of this shape, type and memory layout, on a device that need not be there."""
    empty = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device="meta")
    return FakeTensor(mode, empty, device)


def _named(asked: torch.device) -> torch.device | None:
    """The place that a device's name means: `cuda` is `cuda:0`, and `cpu` the host."""
    if asked.type == "cpu":
        return asked if asked.index is not None else None
    return BEHIND[torch.device(asked.type, asked.index or 0)]


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


def placed(hf: nn.Module, place: torch.device) -> nn.Module:
    """Put a whole model on one device, as `to` would."""
    made: dict[int, nn.Parameter] = {}
    for module in hf.modules():
        for key, weight in module._parameters.items():
            if weight is not None:
                module._parameters[key] = made.setdefault(
                    id(weight), nn.Parameter(Placed(weight.data, place), requires_grad=False)
                )
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = Placed(buffer, place)
    return hf


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
