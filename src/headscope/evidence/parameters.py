"""How many parameters a head and a circuit hold.

    per head = d_model * (d_qk + d_qk + d_v + d_v)        W_Q, W_K, W_V, W_O

Biases of Q, K and V are d_qk + d_qk + d_v more; the output projection's bias belongs to the layer. Under grouped
queries a head counts the KV head it uses, and a circuit counts each KV head once. The count is taken only where the
attention module's matrices add up to it; a family that factors or gates them is refused with the reason.

GPT-2 small: 4 * 768 * 64 = 196,608 per head, 192 more with biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from headscope.errors import UnsupportedModel
from headscope.model.attention import Attention
from headscope.model.load import Model, load
from headscope.model.taps import forward
from headscope.types import HeadId

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount:
    """Parameters of a head, a circuit and the model."""

    per_head: int
    """W_Q, W_K, W_V and W_O of one head."""
    per_head_with_bias: int
    """The same with the biases of Q, K and V."""
    heads: tuple[HeadId, ...]
    """The circuit's heads; empty for the smallest induction circuit, one head in each of two layers."""
    circuit: int
    """Weights of the circuit's heads, without biases; shared KV heads counted once."""
    model_total: int
    """All parameters, tied ones once."""

    @property
    def share(self) -> float:
        """Circuit over model."""
        return self.circuit / self.model_total

    def to_dict(self) -> dict[str, Any]:
        """The document `headscope.params/1`, JSON-ready."""
        return {
            "schema": "headscope.params/1",
            "per_head": self.per_head,
            "per_head_with_bias": self.per_head_with_bias,
            "circuit": {
                "heads": [{"layer": head.layer, "head": head.head} for head in self.heads],
                "n_heads": len(self.heads) or 2,
                "parameters": self.circuit,
            },
            "model_total": self.model_total,
            "share": self.share,
        }


def count_parameters(
    model: Model | PreTrainedModel | str | Path, *, heads: Sequence[HeadId | str] = ()
) -> ParameterCount:
    """Count the parameters of a head, of a circuit, and of the model.

    Args:
        model: What `headscope.load` takes, or gives.
        heads: The circuit, like `["L5H1", "4.11"]`; by default one head in each of two layers.

    Raises:
        ArgumentError: a head that the model does not have.
        UnsupportedModel: attention whose matrices are not one Q, K, V and O per head.
    """
    model = load(model)
    circuit = model.named(heads) if heads else ()
    shapes = _shapes(model)
    layer = circuit[0].layer if circuit else next(iter(shapes))
    shape = shapes[layer]
    if not circuit:
        total = 2 * shape.per_head
    else:
        groups = {(head.layer, head.head * shapes[head.layer].n_kv // shapes[head.layer].n_heads) for head in circuit}
        total = sum(shapes[head.layer].half for head in circuit) + sum(shapes[at].half for at, _ in groups)
    return ParameterCount(
        per_head=shape.per_head,
        per_head_with_bias=shape.per_head + shape.bias,
        heads=circuit,
        circuit=total,
        model_total=sum(weight.numel() for weight in model.hf.parameters()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shape:
    """One layer's attention."""

    n_heads: int
    n_kv: int
    half: int
    """d_model * (d_qk + d_v): W_Q and W_O of a head, or W_K and W_V of a KV head."""
    bias: int
    """Biases of Q, K and V of one head."""

    @property
    def per_head(self) -> int:
        return 2 * self.half


def _shapes(model: Model) -> dict[int, _Shape]:
    route = model.check.route
    assert route is not None, "load refuses models without a route"
    if route.path != "interface":
        raise UnsupportedModel(
            f"{model.id} ({model.family}) hides its queries and keys, so a head's parameters cannot be counted."
        )
    names = {layer: name for name, layer in reversed(route.layers.items())}
    shapes: dict[int, _Shape] = {}
    d_model = int(model.hf.config.get_text_config().hidden_size)

    def visit(attention: Attention) -> None:
        scores = attention.scores
        assert scores is not None, "the interface shows queries and keys"
        n_heads, n_kv, d_qk, d_v = attention.n_heads, scores.k.shape[1], scores.q.shape[-1], scores.v.shape[-1]
        module = model.hf.get_submodule(names[attention.layer])
        weights = sum(p.numel() for p in module.parameters() if p.dim() == 2)
        biases = sum(p.numel() for name, p in module.named_parameters() if name.rpartition(".")[2] == "bias")
        half = d_model * (d_qk + d_v)
        if weights != half * (n_heads + n_kv):
            raise UnsupportedModel(
                f"layer {attention.layer} of {model.id} ({model.family}) holds {weights:,} attention weights, not the "
                f"{half * (n_heads + n_kv):,} of one Q and O per head and one K and V per KV head, "
                "so none can be assigned to a head."
            )
        inner = n_heads * d_qk + n_kv * (d_qk + d_v)
        shapes[attention.layer] = _Shape(
            n_heads=n_heads, n_kv=n_kv, half=half, bias=2 * d_qk + d_v if biases in (inner, inner + d_model) else 0
        )

    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    forward(model.hf, route, tokens, visit, stop_at_last=True)
    return dict(sorted(shapes.items()))
