"""Proof that a layer's output matrix is all that reads its heads' results.

The linear layer that was found reads them; nothing so far says that no other does, such as a second expert or a map of
their squares. So every layer's heads get the results of another prompt, once as they are and once as what the matrices
make of them, put in the place of the output that was found. Both have to give one output of the model.

Cost: two passes over 12 prompts of 4 tokens.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor, nn

from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.weights.layer import LayerWeights
from headscope.model.weights.recording import Record, refused, share_apart, tolerance_of, watching, widened


def refuse_other_readers(
    model: Model,
    tokens: Int[Tensor, "prompt position"],
    record: Record,
    weights: dict[int, LayerWeights],
    outputs: dict[int, nn.Module],
) -> None:
    """Raise unless the heads' results reach the model's output through `w_o` alone.

    Args:
        model: As it was recorded.
        tokens: The prompts of the record.
        record: Of a pass as it is.
        weights: What was found.
        outputs: Of each layer the module whose output is `z @ w_o + b_o`.

    Raises:
        UnsupportedModel: another map reads them too.
    """
    others = {layer: record.seen[layer][1]["z"].roll(1, 0) for layer in weights}
    made = {
        outputs[layer]: torch.einsum("pihd,hdm->pim", others[layer], one.w_o) + one.b_o
        for layer, one in weights.items()
    }

    def heads(attention: Attention) -> Tensor | None:
        found = others.get(attention.layer)
        return None if found is None else found.to(attention.z)

    def output(module: nn.Module, given: Tensor, gave: Tensor) -> Tensor | None:
        found = made.get(module)
        return None if found is None else found.to(gave).view(gave.shape)

    wanted = widened(model.backbone.output(model.run(tokens, heads)))
    with watching(model.module, output):
        given = widened(model.backbone.output(model.run(tokens, lambda attention: None)))
    if share_apart(given, wanted) > tolerance_of(model):
        why = "more than one map reads its heads' results (experts, or another use of them)"
        raise refused(model, min(weights), why)
