"""Our attention function inside transformers: one function for every family that uses its attention interface.

Transformers calls the function named by `config._attn_implementation` after rotary embedding, query-key norm and the
split into heads, and before the output projection. `installed` registers one under a name of its own, which this
thread alone reads in the model's configs (`headscope.model.scope`), and removes it on exit, also after an exception.
The state lives in that call, so two models, or two threads, do not meet.

An argument that a family passes and we do not know is never ignored: `UnknownArgument` is raised, and the self-check
falls back to the family's own code (`headscope.model.hooks`).
"""

# pyright: reportPrivateUsage=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

import itertools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from headscope.model import kernels
from headscope.model.attention import Attention, Scores
from headscope.model.kernels import AttentionSpec, Kernel
from headscope.model.parallel import split_of
from headscope.model.scope import implementation

Visit = Callable[[Attention], Tensor | None]
"""Sees one layer's attention; a returned tensor [batch query head d_head] replaces z, None leaves it."""

Numbering = Callable[[nn.Module], tuple[int, int]]
"""Gives an attention module that is being called its (layer, call)."""

_NAMES = itertools.count()

_WITHOUT_MEANING_HERE = {
    "cache_position",
    "deterministic",
    "dropout",
    "layer_idx",
    "logits_to_keep",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "position_ids",
    "return_dict",
    "sliding_window",  # already in the mask, which the model makes from the same number
    "token_type_ids",
    "use_cache",
}
"""Arguments that do not change attention in evaluation mode once the mask is there."""


class UnknownArgument(Exception):
    """The model passes its attention function an argument that we do not know."""


@contextmanager
def installed(
    model: nn.Module,
    visit: Visit,
    number: Numbering,
    *,
    kernel: Kernel | None = None,
    additive_mask: bool = False,
) -> Generator[None, None, None]:
    """Within the block every attention call of `model` goes through `visit`.

    Args:
        model: Any transformers model; left as it was afterwards.
        visit: Called once per attention call, in the order of the forward pass.
        number: Tells layer and call of a module.
        kernel: Force one of our kernels; by default the fastest that applies.
        additive_mask: Give the model masks of numbers to add, for families that extend them as such; else boolean ones,
            or none where causal is all they say, which the fused kernels like better.
    """

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **named: Any
    ) -> tuple[Tensor, None]:
        rule = _rule(module, query, key, attention_mask, named)
        layer, call = number(module)
        mixed, lse, name = kernels.attend(query, key, value, rule, kernel)
        z = mixed.transpose(1, 2)
        scores = Scores(q=query, k=key, v=value, rule=rule, lse=lse)
        seen = Attention(layer=layer, call=call, z=z, kernel=name, scores=scores)
        split = split_of(module, z)
        replaced = visit(seen if split is None else split.together(seen))
        if replaced is not None and split is not None:
            replaced = split.own(replaced)
        return (z if replaced is None else replaced.to(z.dtype)).contiguous(), None

    name = f"headscope_{next(_NAMES)}"
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, eager_mask if additive_mask else sdpa_mask)
    try:
        with implementation(model, name):
            yield
    finally:
        AttentionInterface._global_mapping.pop(name, None)
        AttentionMaskInterface._global_mapping.pop(name, None)


def _rule(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    named: dict[str, Any],
) -> AttentionSpec:
    """The rule that a call's arguments spell."""
    given = {name: value for name, value in named.items() if value is not None and name not in _WITHOUT_MEANING_HERE}
    scale = given.pop("scaling", None)
    softcap = given.pop("softcap", None)
    causal = given.pop("is_causal", None)
    position_bias = given.pop("position_bias", None)
    sinks = given.pop("s_aux", None)
    row_sinks = given.pop("sinks", None)
    indices = given.pop("indices", None)
    if mask is not None and mask.dim() != 4:
        given["attention_mask"] = mask
    if given:
        raise UnknownArgument(", ".join(sorted(given)))
    bias = None
    if mask is not None:
        bias = mask if mask.dtype == torch.bool else mask.to(query.dtype)
        if bias.shape[-1] > key.shape[2]:
            bias = bias[..., : key.shape[2]]
    if indices is not None:
        chosen = torch.zeros(query.shape[0], query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        chosen.scatter_(-1, indices.long(), True)
        allowed = kernels.additive(chosen[:, None], query.dtype)
        bias = allowed if bias is None else torch.minimum(kernels.additive(bias, query.dtype), allowed)
    if position_bias is not None:
        bias = position_bias if bias is None else position_bias + kernels.additive(bias, query.dtype)
    plain = mask is None and query.shape[2] > 1
    causal = plain and bool(getattr(module, "is_causal", True) if causal is None else causal)
    return AttentionSpec(
        scale=query.shape[-1] ** -0.5 if scale is None else float(scale),
        causal=causal,
        bias=bias,
        softcap=softcap,
        sinks=sinks.reshape(1, -1, 1) if sinks is not None else row_sinks[..., 0] if row_sinks is not None else None,
    )
