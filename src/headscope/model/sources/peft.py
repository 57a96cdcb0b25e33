"""Adapters of PEFT around a model: the model as it runs with them, merged or not.

PEFT puts its layers into the model's own tree, so the tree is that of the model, and everything that runs through it
has the adapters' share. Prompt-learning adapters, which put tokens before the input, are refused, and so are activated
LoRA and those whose whole gives other logits than the model inside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from headscope.errors import ArgumentError, UnsupportedModel
from headscope.model.backbone import Backbone
from headscope.model.scope import evaluating
from headscope.model.sources import Found, Options, find
from headscope.model.taps import TOLERANCE

PLACE = 20
"""Sources are asked in this order."""


def found(given: Any, options: Options) -> Found | None:
    """The model inside a `PeftModel`."""
    names = {kind.__name__ for kind in type(given).__mro__ if kind.__module__.split(".")[0] == "peft"}
    if not names & {"PeftModel", "PeftMixedModel"}:
        return None
    active = list(given.active_adapters)
    for name in active:
        refuse_prompts(given.peft_config[name])
    held = find(given.get_base_model(), options)
    assert held is not None
    if options.forward is None:
        _refuse_other(given, held.backbone)
    return replace(held, name=f"{held.name} with {', '.join(active)}" if active else held.name)


def _refuse_other(given: Any, inside: Backbone) -> None:
    """Raise unless the model inside gives what the whole gives: some adapters work in the whole's own forward pass."""
    ids = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 1, 0]], device=inside.device)
    with torch.no_grad(), evaluating(given):
        wanted, own = inside.output(given(ids)), inside.run(ids)
    limit = TOLERANCE.get(own.dtype, TOLERANCE[torch.float32]) * max(1.0, float(wanted.abs().max()))
    if wanted.shape != own.shape or float((wanted - own).abs().max()) > limit:
        kinds = ", ".join(sorted({type(config).__name__ for config in given.peft_config.values()}))
        raise UnsupportedModel(
            f"load got an adapter ({kinds}) that works outside of the model's layers; merge it into the model first."
        )


def refuse_prompts(config: Any) -> None:
    """Raise unless an adapter changes the model alone, neither its input nor by its input.

    Raises:
        ArgumentError: it puts tokens of its own before the input, or acts behind certain tokens alone.
    """
    if getattr(config, "is_prompt_learning", False):
        raise ArgumentError(
            f"load got an adapter with {type(config).__name__}, which puts tokens of its own before the input; load "
            "the model without it."
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise ArgumentError(
            f"load got an activated LoRA, which acts only behind the tokens {config.alora_invocation_tokens} of its "
            "input; load the model without it."
        )
