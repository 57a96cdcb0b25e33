"""Run a model once and see, or change, every head of every layer.

    forward(backbone, route, tokens, visit)          what `model.run(tokens, visit)` calls

calls `visit` with an `Attention` for each layer in the order of the forward pass. What `visit` returns replaces that
layer's z. The model is left as it was: attention implementation, hooks, mode, gradients, also after an exception.
Passes of other threads through the same model do not notice (`headscope.model.scope`).
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headscope.errors import ShapeError, UnsupportedModel
from headscope.model.attention import Attention
from headscope.model.backbone import Backbone
from headscope.model.hooks import hooked
from headscope.model.interface import UnknownArgument, Visit, installed
from headscope.model.kernels import Kernel
from headscope.model.mixing import mixing
from headscope.model.product import NotMixing, Site
from headscope.model.scope import evaluating, implementation, outside

Path = Literal["interface", "hooks", "module"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How a model's attention is reached; `selfcheck` finds it."""

    path: Path
    """`interface`: our function and kernels. `hooks`: a family's own code, watched. `module`: any module, watched where
    probabilities mix values."""
    layers: dict[str, int]
    """Decoder layer of each attention module (`interface`, `module`) or output projection (`hooks`), by its name."""
    calls: int
    """Attention calls in one forward pass."""
    implementation: str | None = None
    """On the path `hooks`, the attention implementation that the configs must name; None leaves theirs."""
    additive_mask: bool = False
    """On the path `interface`, whether the model's masks must be numbers to add."""
    sites: dict[str, tuple[Site, ...]] = field(default_factory=dict[str, "tuple[Site, ...]"])
    """On the path `module`, the attention calls of each module, in their order."""


class Stop(Exception):
    """Raised by a visit that has seen enough: the forward pass ends there, and `forward` returns None."""


def forward(
    backbone: Backbone,
    route: Route,
    tokens: Int[Tensor, "batch position"],
    visit: Visit,
    *,
    kernel: Kernel | None = None,
    stop_at_last: bool = False,
    grad: bool = False,
) -> Any:
    """One forward pass with every attention call shown to `visit`.

    Args:
        backbone: A model in any mode; it runs in evaluation mode.
        route: How its attention is reached.
        tokens: Token ids on the model's device, without padding.
        visit: Sees each layer; a tensor it returns replaces z.
        kernel: Force a kernel on the `interface` path.
        stop_at_last: Leave after the last attention: no last MLP, no unembedding, and None is returned.
        grad: Build the autograd graph.

    Returns:
        The model's own output, or None.

    Raises:
        ShapeError: what `visit` returned does not have the shape of z.
        UnsupportedModel: this input reaches attention that the self-check's did not, or is attended to in another way.
    """
    model = backbone.module
    names = {model.get_submodule(name): layer for name, layer in route.layers.items()}
    seen: dict[int, int] = {}
    count = 0

    def unknown_call(name: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"this input reaches a {name} that the self-check's input did not; "
            "its layer is not known: use another input or another model."
        )

    def number(module: nn.Module) -> tuple[int, int]:
        if module not in names:
            raise unknown_call(type(module).__name__)
        layer = names[module]
        seen[layer] = seen.get(layer, -1) + 1
        return layer, seen[layer]

    def counted(attention: Attention) -> Tensor | None:
        nonlocal count
        count += 1
        with outside():
            replaced = visit(attention)
        if replaced is not None and replaced.shape != attention.z.shape:
            raise ShapeError(
                f"visit returned {list(replaced.shape)} for layer {attention.layer}; it needs the shape of z, "
                f"{list(attention.z.shape)} [batch query head d_head], or None to leave z as it is."
            )
        if stop_at_last and count == route.calls:
            raise Stop
        return replaced

    try:
        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            stack.enter_context(torch.enable_grad() if grad else torch.no_grad())
            if route.path == "interface":
                stack.enter_context(installed(model, counted, number, kernel=kernel, additive_mask=route.additive_mask))
            elif route.path == "module":
                shape = (tokens.shape[0], tokens.shape[1])
                stack.enter_context(mixing(model, route.sites, shape, counted, kernel, unknown_call))
            else:
                stack.enter_context(implementation(model, route.implementation))
                stack.enter_context(hooked(list(names), tokens.shape[1], counted, number))
            return backbone.call(tokens)
    except Stop:
        return None
    except NotMixing as why:
        raise UnsupportedModel(
            f"this input makes the model attend in another way than the self-check's did: {why}; "
            "use input of another length or another model."
        ) from why
    except UnknownArgument as unknown:
        raise UnsupportedModel(
            f"this input makes the model call its attention with an argument we do not know ({unknown}); "
            "use another input or another model."
        ) from unknown


TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference that rounding explains, as a share of the largest output. Also in float64 models the families' own
code takes softmax and rotary angles in float32."""
