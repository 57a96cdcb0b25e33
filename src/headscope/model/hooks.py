"""The second path: families that compute attention in code of their own, outside transformers' attention interface.

Their own eager code runs unchanged. While it does, a function mode of this thread watches for the two ways to attend:
a softmax that yields probabilities of every token over every token, or a call of scaled-dot-product attention between
all tokens (which then runs through our kernel, to give its log-sum-exp). The linear layer that runs next is the output
projection: its input is z, read or replaced there. A pattern is dropped as soon as its layer's projection has run, so
memory is O(n^2) for one layer.
"""

# pyright: reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.errors import UnsupportedModel
from headscope.model import kernels
from headscope.model.attention import Attention, Scores
from headscope.model.interface import Numbering, Visit
from headscope.model.parallel import is_split
from headscope.model.scope import hooking

_SOFTMAXES = {F.softmax, torch.softmax, Tensor.softmax}


@dataclass(slots=True)
class _Attended:
    """What was last seen attending."""

    scores: Scores | None = None
    pattern: Tensor | None = None
    kernel: str = "own"


class _Watch(TorchFunctionMode):
    """Remembers the latest attention among `n_tokens` tokens that this thread computed."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.latest: _Attended | None = None
        self.paused = False
        """While a visit runs, which may run another model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func is F.scaled_dot_product_attention and self._among_tokens(*args, **kwargs):
            return self._attend(*args, **kwargs)
        result = func(*args, **kwargs)
        if func in _SOFTMAXES and result.dim() in (3, 4) and result.shape[-2:] == (self.n_tokens, self.n_tokens):
            self.latest = _Attended(pattern=result)
        return result

    def _among_tokens(self, query: Tensor, key: Tensor, *_: Any, **__: Any) -> bool:
        return query.dim() == 4 and query.shape[2] == key.shape[2] == self.n_tokens

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        mask = None if attn_mask is None else attn_mask[(None,) * (4 - attn_mask.dim())]
        rule = kernels.AttentionSpec(
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            causal=is_causal,
            bias=mask if mask is None or mask.dtype == torch.bool else mask.to(query.dtype),
        )
        z, lse, kernel = kernels.attend(query, key, value, rule)
        self.latest = _Attended(scores=Scores(q=query, k=key, v=value, rule=rule, lse=lse), kernel=kernel)
        return z


def is_projection(module: nn.Module) -> bool:
    """A linear layer of any make: no children, and a two-dimensional weight that is not an embedding's.

    An adapter around one (PEFT's layers hold it as `base_layer`) is one linear layer with it.
    """
    weight = getattr(module, "weight", None)
    if isinstance(module._modules.get("base_layer"), nn.Linear):
        return True
    return (
        isinstance(weight, Tensor)
        and weight.dim() == 2
        and not isinstance(module, nn.Embedding)
        and not any(True for _ in module.children())
    )


@contextmanager
def discovering(model: nn.Module, n_tokens: int) -> Generator[list[str], None, None]:
    """Within the block, the names of the linear layers that run first after each attention are collected.

    Args:
        model: The model whose forward pass will run inside the block.
        n_tokens: Length of its input.
    """
    names: list[str] = []
    watch = _Watch(n_tokens)
    projections = {module: name for name, module in model.named_modules() if is_projection(module)}

    def note(module: nn.Module, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if watch.latest is not None and args and isinstance(args[0], Tensor):
            names.append(projections[module])
            watch.latest = None

    with hooking(projections, before=note), watch:
        yield names


@contextmanager
def hooked(projections: list[nn.Module], n_tokens: int, visit: Visit, number: Numbering) -> Generator[None, None, None]:
    """Within the block, `visit` sees each attention just before its output projection runs.

    Args:
        projections: The output projections that `discovering` found.
        n_tokens: Length of the input.
        visit: Sees each layer; a tensor it returns replaces z.
        number: Tells layer and call of a projection.

    Raises:
        UnsupportedModel: heads that are split over processes.
    """
    watch = _Watch(n_tokens)

    def before(
        module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        seen, watch.latest = watch.latest, None
        if seen is None:
            return None
        mixed: Tensor = args[0]
        batch, n_query = mixed.shape[:2]
        if n_query != n_tokens:  # ProphetNet's stands beside another stream, on an axis of their own
            raise ValueError(
                f"its output projection reads {list(mixed.shape)}, not a row for each of {n_tokens} tokens"
            )
        pattern = None if seen.pattern is None else seen.pattern.reshape(batch, -1, *seen.pattern.shape[-2:])
        n_heads = pattern.shape[1] if pattern is not None else seen.scores.q.shape[1] if seen.scores else 1
        layer, call = number(module)
        attention = Attention(
            layer=layer,
            call=call,
            z=mixed.reshape(batch, n_query, n_heads, -1),
            kernel=seen.kernel,
            scores=seen.scores,
            own_pattern=pattern,
        )
        watch.paused = True
        try:
            replaced = visit(attention)
        finally:
            watch.paused = False
        return None if replaced is None else ((replaced.to(mixed.dtype).reshape(mixed.shape), *args[1:]), named)

    for projection in projections:
        if is_split(projection):
            raise UnsupportedModel(
                f"its heads are split over processes, and a {type(projection).__name__} reads them from attention "
                "code of its own, where they cannot be put together; load the model in one process."
            )
    with hooking(projections, before=before), watch:
        yield
