"""What a layer's heads make of residual streams that no prompt gives: queries and keys of any vectors, at any position.

The vector takes the place of the residual stream before the layer, at one position of a dummy prompt; the model's
own norm, projections, biases, query-key norm and rotary embedding do the rest. So questions about content ("which keys
does this query match?") need no formula for any of these.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.errors import UnsupportedModel
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.replay import Replay, decoder_layers, restarts
from headscope.model.scope import hooking
from headscope.model.taps import Stop

BATCH_NUMBERS = 2**25
"""Numbers in the injected stream of one pass."""


def queries_and_keys(
    model: Model, layer: int, vectors: Float[Tensor, "vector d_model"], position: int
) -> tuple[Float[Tensor, "vector head d_qk"], Float[Tensor, "vector kv_head d_qk"]]:
    """Q and k of every head of a layer for these residual streams, as they enter the dot product.

    Args:
        model: A loaded model with an LM head.
        layer: A layer with attention.
        vectors: Residual streams before the layer. Their size matters only where the layer reads it raw.
        position: Their place in the prompt.

    Raises:
        UnsupportedModel: the layer cannot be distinguished, or hides its queries and keys.
    """
    size = max(1, BATCH_NUMBERS // ((position + 1) * vectors.shape[1]))
    parts = [_run(model, layer, part, position) for part in torch.split(vectors, size)]
    return torch.cat([q for q, _ in parts]), torch.cat([k for _, k in parts])


def _run(model: Model, layer: int, vectors: Tensor, position: int) -> tuple[Tensor, Tensor]:
    replay = Replay(model, torch.zeros(1, position + 1, dtype=torch.long, device=model.device))
    replay.clean()
    start, layers = replay.start_of(layer), decoder_layers(model)
    if start is None or start >= len(layers) or not restarts(model):
        raise UnsupportedModel(f"layer {layer} of {model.id} ({model.family}) cannot be given a residual stream.")
    seen: list[tuple[Tensor, Tensor]] = []

    def enter(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        def injected(stream: Any) -> Any:
            if not isinstance(stream, Tensor) or stream.shape[1:] != (position + 1, vectors.shape[1]):
                raise UnsupportedModel(
                    f"layer {layer} of {model.id} ({model.family}) reads something else than one stream."
                )
            stream = stream.clone()
            stream[:, position] = vectors.to(stream)
            return stream

        if arguments:
            return (injected(arguments[0]), *arguments[1:]), named
        return arguments, named | {"hidden_states": injected(named.get("hidden_states"))}

    def visit(attention: Attention) -> None:
        if attention.layer == layer:
            s = attention.scores
            if s is None:
                raise UnsupportedModel(f"{model.id} ({model.family}) hides its queries and keys.")
            seen.append((s.q[:, :, position].clone(), s.k[:, :, position].clone()))
            raise Stop

    with hooking([layers[start]], before=enter):
        replay.see(visit, start=start, copies=len(vectors))
    return seen[0]
