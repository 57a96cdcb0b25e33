"""What is put around a model: parallel and compiled modules, pipelines, and modules that hold one language model.

The model inside is what runs, eagerly; the wrapper is left as it was. A holder that changes what its model gives is no
wrapper: it is measured itself, as the module that it is.
"""

# pyright: reportPrivateUsage=false
# pyright: reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from headscope.errors import ArgumentError, HeadscopeError
from headscope.model.adapters import library_of
from headscope.model.scope import evaluating
from headscope.model.sources import Found, Options, find, module, transformers

PLACE = 10
"""Sources are asked in this order."""


def found(given: Any, options: Options) -> Found | None:
    """The model inside."""
    inner = _inside(given)
    if inner is not None:
        held = find(inner, options)
        tokenizer = getattr(given, "tokenizer", None)
        return held if held is None or tokenizer is None else replace(held, tokenizer=tokenizer)
    if isinstance(given, nn.Module) and not isinstance(given, PreTrainedModel) and options.forward is None:
        return _held(given, options)
    return None


def _inside(given: Any) -> Any | None:
    """The module inside a torch wrapper, or the model of a transformers pipeline; None for anything else."""
    if isinstance(given, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        return given.module
    if isinstance(given, nn.Module):
        return dict(given.named_children()).get("_orig_mod")
    if any(kind.__name__ == "Pipeline" and kind.__module__.startswith("transformers") for kind in type(given).__mro__):
        return given.model
    return None


def _held(holder: nn.Module, options: Options) -> Found | None:
    """The one language model that a module holds, if the module gives the same logits, or cannot run on ids at all."""
    if library_of(holder) or type(holder).__module__.split(".")[0] == "peft":
        return None
    models = [part for part in holder.modules() if isinstance(part, PreTrainedModel)]
    outer = [part for part in models if not any(part is not other and part in set(other.modules()) for other in models)]
    lightning = any(kind.__name__ == "LightningModule" for kind in type(holder).__mro__)
    if not outer and lightning:
        outer = [part for part in holder.children() if any(True for _ in part.parameters())]  # type: ignore[misc]
    if not outer:
        return None
    runs = None
    try:
        runs = module.backbone(holder)
    except HeadscopeError:
        if len(outer) > 1:
            raise ArgumentError(
                f"load got a {type(holder).__name__} that holds {len(outer)} models; give the one to look at."
            ) from None
    if len(outer) > 1:
        return None
    if runs is not None and not _same(runs, outer[0]):
        return None
    return find(outer[0], options)


def _same(holder: Any, inner: nn.Module) -> bool:
    own = transformers.backbone(inner) if isinstance(inner, PreTrainedModel) else module.backbone(inner)
    ids = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 1, 0]], device=holder.device)
    with torch.no_grad(), evaluating(holder.module):
        given, wanted = holder.run(ids), own.run(ids)
    return given.shape == wanted.shape and torch.allclose(given, wanted, rtol=1e-5, atol=1e-5)
