"""What the modules of a model take and give in one pass, and how far two such tensors differ."""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.errors import UnsupportedModel
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.names import block_of
from headscope.model.parallel import is_plain, weight_of, whole_rows
from headscope.model.scope import hooking
from headscope.model.taps import TOLERANCE

N_CODES = 64
"""Prompts that tell columns apart: signs of two columns agree in 0.9 of them with a chance of 1e-11."""
N_PROMPTS = 12
"""Prompts of real tokens on which everything is recomputed."""

N_POSITIONS = 4
"""Length of every prompt; the first position shows q and k before rotary embedding turns them."""
WORDS = {"q": "queries", "k": "keys", "v": "values"}


def refused(model: Model, layer: int, why: str) -> UnsupportedModel:
    """The error that names a layer whose weights cannot be assigned to heads, and why."""
    return UnsupportedModel(
        f"layer {layer} of {model.id} ({model.family}): {why}, so its weights cannot be assigned to heads; "
        "choose a model whose heads each have Q, K, V and O."
    )


def tolerance_of(model: Model) -> float:
    """Largest share of the largest number that rounding explains in the model's dtype."""
    return TOLERANCE.get(model.dtype, TOLERANCE[torch.float32])


def share_apart(given: Tensor, wanted: Tensor) -> float:
    """Largest difference as a share of the largest number; infinite where one is not a number."""
    difference, size = float((given - wanted).abs().max()), float(wanted.abs().max())
    if difference == 0:
        return 0.0
    share = difference / size if size > 0 else float("inf")
    return share if share == share else float("inf")


def share_apart_by_row(given: Float[Tensor, "*row d"], wanted: Float[Tensor, "*row d"]) -> float:
    """The same between `wanted` and the best multiple of each row of `given`; infinite where one is not positive."""
    size = given.square().sum(-1, keepdim=True)
    factor = (given * wanted).sum(-1, keepdim=True) / size.clamp(min=torch.finfo(size.dtype).tiny)
    return float("inf") if bool(((factor <= 0) & (size > 0)).any()) else share_apart(factor * given, wanted)


def widened(tensor: Tensor) -> Tensor:
    """In float32, or wider where it is wider."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def rows_of(tensor: Tensor, n_prompts: int, n_positions: int) -> Tensor | None:
    """[prompt position column] of a tensor that has a row for every token; None where it has not."""
    width = tensor.shape[-1] if tensor.dim() else 0
    whole = tensor.numel() == n_prompts * n_positions * width > 0
    return tensor.reshape(n_prompts, n_positions, width) if whole else None


def queries_keys_values(model: Model, attention: Attention) -> dict[str, Float[Tensor, "prompt position head d"]]:
    """A call's queries, and its keys and values that belong to tokens."""
    scores = attention.scores
    if scores is None:
        raise refused(model, attention.layer, "its own attention code hides queries, keys and values")
    n_tokens = scores.q.shape[2]
    parts = {"q": scores.q, "k": scores.k, "v": scores.v}
    return {name: widened(part[:, :, :n_tokens].transpose(1, 2)) for name, part in parts.items()}


@contextmanager
def watching(
    model: nn.Module, after: Callable[[nn.Module, Tensor, Tensor], Tensor | None]
) -> Generator[None, None, None]:
    """Within the block `after(module, input, output)` runs behind each module; a tensor it returns is the output."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        result = output[0] if isinstance(output, tuple) and output else output
        if not (isinstance(given, Tensor) and isinstance(result, Tensor)):
            return None
        given, whole, own = whole_rows(module, given, result)
        replaced = after(module, given, whole)
        if replaced is None or (result is not output and type(output) is not tuple):
            return None
        return own(replaced) if result is output else (own(replaced), *output[1:])

    with hooking(model.modules(), after=hook):
        yield


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A module that ran, with what it took and gave."""

    module: nn.Module
    given: Tensor
    output: Tensor


@dataclass(slots=True, eq=False)
class Record:
    """One pass of the model."""

    calls: list[Call] = field(default_factory=list[Call])
    """In the order in which they ended, of those modules that keep the shape or were asked for."""
    begun: dict[nn.Module, list[Tensor]] = field(default_factory=dict[nn.Module, list[Tensor]])
    """What the decoder layers took, in the order in which they began."""
    seen: dict[int, tuple[int, dict[str, Tensor]]] = field(default_factory=dict[int, tuple[int, dict[str, Tensor]]])
    """For each layer how many calls ended before its attention, and its q, k, v and z."""


def recorded(
    model: Model, tokens: Int[Tensor, "prompt position"], modules: set[nn.Module], blocks: set[nn.Module]
) -> Record:
    """One pass as it is."""
    record = Record()

    def after(module: nn.Module, given: Tensor, output: Tensor) -> None:
        if module in modules or (given.shape == output.shape and given.dim() > 1):
            record.calls.append(Call(module, given.detach().to(output.device, copy=True), output.detach().clone()))

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor):
            record.begun.setdefault(module, []).append(given.detach().clone())

    def visit(attention: Attention) -> None:
        if not attention.call and attention.scores is not None:
            parts = queries_keys_values(model, attention) | {"z": widened(attention.z)}
            record.seen[attention.layer] = len(record.calls), {name: part.clone() for name, part in parts.items()}

    with watching(model.module, after), hooking(blocks, before=begin):
        model.run(tokens, visit)
    return record


def decoder_layer(model: Model, layer: int) -> nn.Module:
    """The decoder layer around an attention module.

    Raises:
        UnsupportedModel: the module that attends there is an earlier layer's too.
    """
    name = next((name for name, number in model.route.layers.items() if number == layer), None)
    if name is None:
        raise refused(model, layer, "one module attends for several layers")
    return model.module.get_submodule(block_of(name))


def linear_map(call: Call, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Matrix [in, out] and bias of a linear layer, whichever way it stores them, if they give what it gave.

    Where its weight is not all that it computes (an adapter) or is packed (quantised), it is asked what it gives for
    each unit vector.
    """
    found = _stored_map(call, tolerance)
    return found if found is not None else _asked_map(call, tolerance)


def _asked_map(call: Call, tolerance: float) -> tuple[Tensor, Tensor] | None:
    x, y = widened(call.given), widened(call.output)
    unit = torch.eye(x.shape[-1], dtype=call.given.dtype, device=call.given.device)
    try:
        shift, rows = (widened(call.module(given)) for given in (torch.zeros_like(unit[:1]), unit))
    except (RuntimeError, TypeError, ValueError, IndexError):  # it needs more, or takes other shapes
        return None
    if rows.shape != (x.shape[-1], y.shape[-1]):
        return None
    matrix = rows - shift
    return (matrix, shift[0]) if share_apart(x @ matrix + shift[0], y) <= tolerance else None


def _stored_map(call: Call, tolerance: float) -> tuple[Tensor, Tensor] | None:
    stored = getattr(call.module, "weight", None)
    if not isinstance(stored, Tensor) or not stored.is_floating_point():
        return None
    stored = weight_of(call.module)
    if not is_plain(stored):
        return None
    x, y, weight = widened(call.given), widened(call.output), widened(stored)
    biased = isinstance(getattr(call.module, "bias", None), Tensor)
    shift = widened(weight_of(call.module, "bias")) if biased else weight.new_zeros(y.shape[-1])
    for matrix in (weight.T, weight):
        if matrix.shape == (x.shape[-1], y.shape[-1]) and share_apart(x @ matrix + shift, y) <= tolerance:
            return matrix, shift
    return None


def equal(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same numbers in the same order, whatever their shapes."""
    return first.numel() == second.numel() and torch.equal(first.reshape(second.shape), second.to(first.device))
