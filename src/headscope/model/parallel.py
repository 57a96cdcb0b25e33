"""Models in parts: layers on several devices or off them, heads split over processes.

`device_map` puts layers on different devices, or keeps their weights elsewhere between calls; accelerate's hooks move
what a layer needs. Attention is then seen where its layer runs, and a layer's weights are read there; what several
layers' numbers make together is made where token ids go.

Tensor parallelism (`tp_plan="auto"` under torchrun) gives each process some heads of every layer. Where an attention's
output projection is split by its inputs, our attention function puts the heads of all processes together, in their
order, before a visit sees them, and hands back to each process its own. So every process runs the same program and
sees the same heads, with their own numbers, and edits and gradients go through.

    gathered   forward: all processes' heads; backward: this process's share
    own        forward: this process's share; backward: all processes' gradients

Cost of the latter: q, k, v and z of each layer travel once, tokens * (2 n_heads + 2 n_kv_heads) * d_head numbers.

Misleading when: an error strikes one process alone, like running out of memory; the others wait for it until the
process group gives up.
"""

# pyright: reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headscope.model.attention import Attention


def input_device(embedding: nn.Module) -> torch.device:
    """Where token ids go: the embedding's device, or the one on which it runs when its weights wait elsewhere."""
    weight: Any = embedding.weight
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return weight.device if device is None or weight.device.type != "meta" else torch.device(device)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """How the heads of an attention module are split: evenly, in the order of the processes."""

    group: Any
    """The processes that share the heads."""

    def together(self, seen: Attention) -> Attention:
        """What was seen of this process's heads, and what the others saw of theirs."""
        n_own = seen.n_heads
        scores = seen.scores
        assert scores is not None, "only our attention function puts heads together"
        rule = scores.rule
        by_head = {
            name: None if part is None or part.shape[1] != n_own else self._all(part, 1)
            for name, part in (("bias", rule.bias), ("sinks", rule.sinks))
        }
        return replace(
            seen,
            z=self._all(seen.z, 2),
            scores=replace(
                scores,
                q=self._all(scores.q, 1),
                k=self._all(scores.k, 1),
                v=self._all(scores.v, 1),
                lse=self._all(scores.lse, 1),
                rule=replace(rule, **{name: part for name, part in by_head.items() if part is not None}),
            ),
        )

    def own(self, z: Tensor) -> Tensor:
        """This process's share of all heads' z [batch query head d_head]."""
        return _Own.apply(z, 2, self.group)

    def _all(self, part: Tensor, axis: int) -> Tensor:
        return _Gathered.apply(part, axis, self.group)


def split_of(attention: nn.Module, z: Tensor) -> Split | None:
    """How the heads of an attention module are split over processes, given its z [batch query head d_head].

    None where this process has them all. Told from the output projection: a matrix that is split by its inputs, of
    which z is this process's part.
    """
    for module in attention.modules():
        places = _places(module)
        if places is not None:
            (_, in_size), by_input, group = places
            if by_input and in_size == z.shape[2] * z.shape[3] * group.size():
                return Split(group)
    return None


def weight_of(module: nn.Module, name: str = "weight") -> Tensor:
    """A module's parameter, whole: put together from all processes, or fetched from where it waits between calls.

    One that a quantising library keeps packed is unpacked, where it says how.
    """
    weight: Any = getattr(module, name)
    if hasattr(weight, "full_tensor"):
        return weight.full_tensor()
    if weight.device.type == "meta" and hasattr(module, "_hf_hook"):
        from accelerate.utils import align_module_device

        with align_module_device(module):
            return getattr(module, name).detach().clone()
    if not is_plain(weight):
        try:
            return weight.dequantize()
        except (RuntimeError, AttributeError, TypeError):  # it does not say
            return weight
    return weight


def is_plain(weight: Tensor) -> bool:
    """Whether a tensor is what it seems: a class of a quantising library may know a few operations alone."""
    return type(weight) in (Tensor, nn.Parameter, nn.Buffer)


def whole_rows(module: nn.Module, given: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """What a linear layer took and gave, each with the columns of all processes.

    Returns:
        Both, and what turns an output with all columns into this process's.
    """
    places = _places(module)
    if places is None:
        return given, output, lambda whole: whole
    (out_size, in_size), by_input, group = places
    if by_input and given.shape[-1] * group.size() == in_size:
        given = _gather(given, -1, group)
    if by_input or output.shape[-1] * group.size() != out_size:
        return given, output, lambda whole: whole
    return given, _gather(output, -1, group), lambda whole: _share(whole, -1, group)


def is_split(linear: nn.Module) -> bool:
    """Whether a linear layer's weight is split over processes."""
    return _places(linear) is not None


def _places(module: nn.Module) -> tuple[tuple[int, int], bool, Any] | None:
    """Of a linear layer that is split over processes: [out, in], whether by its inputs, and the processes."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    from torch.distributed.tensor import DTensor, Shard

    weight = getattr(module, "weight", None)
    if not isinstance(weight, DTensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
        return None
    dims = [place.dim % 2 for place in weight.placements if isinstance(place, Shard)]
    return ((weight.shape[0], weight.shape[1]), dims == [1], weight.device_mesh.get_group()) if dims else None


def _gather(part: Tensor, axis: int, group: Any) -> Tensor:
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.size())]
    torch.distributed.all_gather(parts, part.contiguous(), group=group)
    return torch.cat(parts, dim=axis)


def _share(whole: Tensor, axis: int, group: Any) -> Tensor:
    return whole.chunk(group.size(), dim=axis)[group.rank()].contiguous()


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, axis: int, group: Any) -> Tensor:
        ctx.how = axis, group
        return _gather(part, axis, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _share(gradients[0], *ctx.how), None, None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole: Tensor, axis: int, group: Any) -> Tensor:
        ctx.how = axis, group
        return _share(whole, axis, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _gather(gradients[0], *ctx.how), None, None
