"""Adapters of PEFT around a model: the model as it runs with them, merged or not.

PEFT puts its layers into the model's own tree, so the tree is that of the model, and everything that runs through it
has the adapters' share. Prompt-learning adapters, which put tokens before the input, are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headscope.errors import ArgumentError
from headscope.model.sources import Found, Options, find

PLACE = 20
"""Sources are asked in this order."""


def found(given: Any, options: Options) -> Found | None:
    """The model inside a `PeftModel`."""
    if not any(
        kind.__module__.split(".")[0] == "peft" and kind.__name__ == "PeftModel" for kind in type(given).__mro__
    ):
        return None
    config = given.peft_config[given.active_adapter]
    if getattr(config, "is_prompt_learning", False):
        raise ArgumentError(
            f"load got a {type(given).__name__} with {type(config).__name__}, which puts tokens of its own before the "
            "input; load the model without it."
        )
    held = find(given.get_base_model(), options)
    assert held is not None
    return replace(held, name=getattr(config, "base_model_name_or_path", None) or held.name)
