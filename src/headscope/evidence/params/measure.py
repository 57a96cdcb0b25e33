"""How many parameters a head and a circuit hold.

    per head = d_model * (d_qk + d_qk + d_v + d_v)        W_Q, W_K, W_V, W_O

Biases of Q, K and V are d_qk + d_qk + d_v more, or less where a family has not all of them; the output projection's
bias belongs to the layer, and a norm's to none. Under grouped queries a head counts the KV head it uses, and a circuit
counts each KV head once. The count is taken only where the attention module's matrices and biases add up to it; a
family that factors or gates them is refused with the reason.

GPT-2 small: 4 * 768 * 64 = 196,608 per head, 192 more with biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from headscope.errors import UnsupportedModel
from headscope.heads import HeadId
from headscope.model.attention import Attention
from headscope.model.load import Heads, Model, Source, load
from headscope.model.scope import hooking
from headscope.records.document import WrittenDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCount(WrittenDocument):
    """Parameters of a head, a circuit and the model."""

    schema: ClassVar[str] = "headscope.params/1"
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

    def body(self) -> dict[str, Any]:
        """What the document holds: the circuit's entries together, and its share of the model."""
        return {
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


def count_parameters(model: Source, *, heads: Heads = ()) -> ParameterCount:
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
        model_total=sum(weight.numel() for weight in model.module.parameters()),
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
    if model.route.path != "interface":
        raise UnsupportedModel(
            f"{model.id} ({model.family}) hides its queries and keys, so a head's parameters cannot be counted."
        )
    names = {layer: name for name, layer in reversed(model.route.layers.items())}
    shapes: dict[int, _Shape] = {}
    d_model = int(getattr(model.backbone.config, "hidden_size", 0))
    ran: set[nn.Module] = set()

    def visit(attention: Attention) -> None:
        if attention.call:
            return
        scores = attention.scores
        assert scores is not None, "the interface shows queries and keys"
        n_heads, n_kv, d_qk, d_v = attention.n_heads, scores.k.shape[1], scores.q.shape[-1], scores.v.shape[-1]
        module = model.module.get_submodule(names[attention.layer])
        weights = sum(p.numel() for p in module.parameters() if p.dim() == 2)
        half = d_model * (d_qk + d_v)
        if weights != half * (n_heads + n_kv):
            raise UnsupportedModel(
                f"layer {attention.layer} of {model.id} ({model.family}) holds {weights:,} attention weights, not the "
                f"{half * (n_heads + n_kv):,} of one Q and O per head and one K and V per KV head, "
                "so none can be assigned to a head."
            )
        # The projections that ran before the attention made q, k and v; the one that has not yet run reads z.
        biases = sum(_biases(part) for part in module.modules() if part in ran)
        behind = sum(_biases(part) for part in module.modules() if part not in ran)
        if behind not in (0, d_model):
            bias = None
        elif biases == n_heads * d_qk + n_kv * (d_qk + d_v):
            bias = 2 * d_qk + d_v
        elif n_kv == n_heads and biases % n_heads == 0:
            bias = biases // n_heads
        else:
            bias = None if biases else 0
        if bias is None:
            raise UnsupportedModel(
                f"layer {attention.layer} of {model.id} ({model.family}) has {biases + behind:,} biases, which are "
                "not those of Q, K and V with or without O, so none can be assigned to a head."
            )
        shapes[attention.layer] = _Shape(n_heads=n_heads, n_kv=n_kv, half=half, bias=bias)

    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    parts = [part for name in names.values() for part in model.module.get_submodule(name).modules() if _biases(part)]

    def note(module: nn.Module, *_: Any) -> None:
        ran.add(module)

    with hooking(parts, after=note):
        model.run(tokens, visit, stop_at_last=True)
    return dict(sorted(shapes.items()))


def _biases(module: nn.Module) -> int:
    """Biases of a projection; 0 for what has no matrix, like a norm."""
    own = dict(module.named_parameters(recurse=False))
    return own["bias"].numel() if {"weight", "bias"} <= own.keys() and own["weight"].dim() == 2 else 0
