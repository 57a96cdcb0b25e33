"""Models of TransformerLens: a bridge around a transformers model, and modules of its own.

A `HookedTransformer` of TransformerLens 2 or 3, and a bridge with a native model, are modules like any other: their own
forward pass runs, with its folding and centring. The library is not imported.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from headscope.model.adapters import is_hooked_transformer, library_of, unwrapped
from headscope.model.sources import Found, Options, find, module

PLACE = 30
"""Sources are asked in this order."""


def found(given: Any, options: Options) -> Found | None:
    """The transformers model inside a bridge; another model of TransformerLens as the module that it is."""
    if library_of(given) != "transformer_lens":
        return None
    inside = getattr(given, "original_model", None) if not is_hooked_transformer(given) else given
    if isinstance(inside, nn.Module) and not isinstance(inside, PreTrainedModel):
        own = module.found(given, options)
        assert own is not None
        config = getattr(given, "cfg", None)
        name = getattr(config, "model_name", None) or own.name
        return replace(own, name=str(name))
    inner = unwrapped(given)
    assert inner is not None
    held = find(inner.hf, options)
    assert held is not None
    return Found(backbone=held.backbone, tokenizer=inner.tokenizer, name=held.name)
