"""Models in nnsight's `LanguageModel` and `NNsight`: the module that they trace."""

from __future__ import annotations

from typing import Any

from headscope.model.adapters import library_of, unwrapped
from headscope.model.sources import Found, Options, find

PLACE = 40
"""Sources are asked in this order."""


def found(given: Any, options: Options) -> Found | None:
    """The transformers model inside."""
    if library_of(given) != "nnsight":
        return None
    inner = unwrapped(given)
    assert inner is not None
    held = find(inner.hf, options)
    assert held is not None
    return Found(backbone=held.backbone, tokenizer=inner.tokenizer, name=held.name)
