"""Models in the wrappers of other libraries: TransformerLens's `TransformerBridge` and nnsight's `LanguageModel`.

Both hold a transformers model; `unwrapped` finds it, and everything else in headscope sees that model alone. Neither
library is imported: a wrapper is known by the module of its class. Heads and layers keep their numbers.

A bridge puts its own modules between those of the transformers model, and in compatibility mode it folds and centres
the weights in place. So it is not the bridge's tree that is read but a copy of it without the bridge's modules, whose
parameters are the very same tensors. The copy is believed when its log-probabilities on a short input are the
bridge's own; else the bridge's tree itself is used, and the self-check says what is less about it.

Cost: for a bridge two or three forward passes over 2 prompts of 29 tokens, once per bridge and state of its weights. No
weight is copied, but for GPT-2's fused projections in compatibility mode.

Misleading when: hooks or edits that live in the wrapper, put there after loading. They are no part of the transformers
model, so scores are those of the model without them.
"""

# pyright: reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from headscope.errors import ArgumentError, UnsupportedModel, brief
from headscope.model.precision import widened
from headscope.model.scope import evaluating
from headscope.model.selfcheck import FAMILY_ERRORS
from headscope.model.sources.transformers import backbone
from headscope.model.taps import TOLERANCE

N_PROMPTS, N_TOKENS = 2, 29
"""Size of the input on which a bridge and the copy of its tree are compared."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unwrapped:
    """What a wrapper holds."""

    hf: PreTrainedModel
    """The transformers model, or a copy of its module tree that shares every weight with it."""
    tokenizer: Any | None
    """The wrapper's tokenizer."""


def library_of(source: object) -> str | None:
    """`transformer_lens` or `nnsight` if the object's class, or one it derives from, comes from there."""
    for kind in type(source).__mro__:
        name = kind.__module__.split(".")[0]
        if name in ("transformer_lens", "nnsight"):
            return name
    return None


def is_hooked_transformer(source: object) -> bool:
    """Whether it is a `HookedTransformer` of TransformerLens before 4.0, which holds no transformers model."""
    return library_of(source) == "transformer_lens" and any(
        kind.__name__ == "HookedTransformer" for kind in type(source).__mro__
    )


def unwrapped(source: object) -> Unwrapped | None:
    """The transformers model inside a wrapper; None if the object is no wrapper that we know.

    An nnsight model that has not loaded its weights yet is told to (`dispatch`). Otherwise the wrapper is left as it
    was.

    Raises:
        ArgumentError: a wrapper without a transformers model in this process.
    """
    library = library_of(source)
    if library == "transformer_lens":
        return _of_bridge(source)
    if library == "nnsight":
        return _of_nnsight(source)
    return None


def _of_nnsight(envoy: Any) -> Unwrapped:
    if getattr(envoy, "dispatched", True) is False:
        envoy.dispatch()
    hf = getattr(envoy, "_module", None)
    if not isinstance(hf, PreTrainedModel):
        raise ArgumentError(
            f"load got nnsight's {type(envoy).__name__} around a {type(hf).__name__}; it needs one around a "
            "transformers model with its weights in this process."
        )
    return Unwrapped(hf=hf, tokenizer=getattr(envoy, "tokenizer", None))


_VIEWS: weakref.WeakKeyDictionary[Any, tuple[Any, PreTrainedModel]] = weakref.WeakKeyDictionary()


def _of_bridge(bridge: Any) -> Unwrapped:
    name = type(bridge).__name__
    if is_hooked_transformer(bridge):
        raise ArgumentError(
            f"load got a {name}, which holds no transformers model; load the checkpoint by its hub id or folder, "
            "or as a TransformerBridge of TransformerLens 4."
        )
    try:
        tree = bridge.original_model
    except AttributeError:
        tree = None
    if not isinstance(tree, PreTrainedModel):
        around = "no model in this process" if tree is None else f"a {type(tree).__name__}"
        raise ArgumentError(
            f"load got TransformerLens's {name} around {around}; it needs a TransformerBridge around a transformers "
            "model, as boot_transformers makes."
        )
    state = (
        getattr(bridge, "compatibility_mode", None),
        tuple((id(weight), weight.data_ptr()) for weight in tree.parameters()),
    )
    if bridge not in _VIEWS or _VIEWS[bridge][0] != state:
        _VIEWS[bridge] = (state, _view(tree))
    return Unwrapped(hf=_VIEWS[bridge][1], tokenizer=getattr(bridge, "tokenizer", None))


def _view(tree: PreTrainedModel) -> PreTrainedModel:
    """The tree without the bridge's modules where that computes the same, else the tree itself."""
    vocabulary = tree.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(int(vocabulary), (N_PROMPTS, N_TOKENS), generator=generator).to(tree.device)
    try:
        wanted = _log_probabilities(tree, tokens)
    except FAMILY_ERRORS as error:
        raise UnsupportedModel(
            f"the bridge's {type(tree).__name__} does not run on token ids alone "
            f"({type(error).__name__}: {brief(error)}); load the model without the bridge."
        ) from error
    limit = TOLERANCE.get(tree.dtype, TOLERANCE[torch.float32]) * max(1.0, float(wanted.abs().max()))
    for joined in (False, True):
        copy = without_bridges(tree, joined=joined)
        assert isinstance(copy, PreTrainedModel)
        try:
            found = _log_probabilities(copy, tokens)
        except FAMILY_ERRORS:
            continue
        if float((found - wanted).abs().max()) <= limit:
            return copy
    return tree


def _log_probabilities(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Not logits: centring the unembedding moves all of a token's logits alike."""
    with torch.no_grad(), evaluating(model):
        return widened(backbone(model).run(tokens)).log_softmax(-1)


def without_bridges(module: nn.Module, *, joined: bool = False) -> nn.Module:
    """A copy of a module tree in which each bridge gives way to what it wraps.

    Modules are new, so that hooks put on one tree do not run in the other; parameters, buffers and configs are shared.
    A module that occurs twice does so in the copy.

    Args:
        module: The tree; left as it was.
        joined: Where a bridge split a projection for q, k and v together into three, and folds into the three alone,
            put them together again. These weights are new tensors.
    """
    return _copied(module, joined, {})


def _copied(module: nn.Module, joined: bool, made: dict[int, nn.Module]) -> nn.Module:
    parts = None
    while (inner := module._modules.get("_original_component")) is not None:
        if joined and all(module._modules.get(name) is not None for name in ("q", "k", "v", "qkv")):
            parts = {name: _innermost(module._modules[name]) for name in ("q", "k", "v", "qkv")}
        module = inner
    if id(module) in made:
        return made[id(module)]
    copy = made[id(module)] = module.__class__.__new__(module.__class__)
    copy.__dict__ = dict(module.__dict__)
    for name, value in module.__dict__.items():
        if isinstance(value, dict) and name.startswith("_") and "_hooks" in name:
            copy.__dict__[name] = OrderedDict()
        elif name in ("_parameters", "_buffers"):
            copy.__dict__[name] = dict(value)
    copy.__dict__["_modules"] = {
        name: None if child is None else _copied(child, joined, made) for name, child in module._modules.items()
    }
    if parts is not None and id(parts["qkv"]) in made:
        _join(made[id(parts["qkv"])], [parts[name] for name in ("q", "k", "v")])
    return copy


def _innermost(module: Any) -> Any:
    while (inner := module._modules.get("_original_component")) is not None:
        module = inner
    return module


def _join(fused: Any, parts: list[Any]) -> None:
    """Put q, k and v side by side into the fused projection's copy, as GPT-2 does; other layouts are left alone."""
    down = isinstance(fused, Conv1D)  # [in, out], where nn.Linear has [out, in]
    weight = torch.cat([part.weight.T if down else part.weight for part in parts], dim=1 if down else 0).detach()
    if weight.shape == fused.weight.shape:
        fused.weight = nn.Parameter(weight, requires_grad=False)
        if fused.bias is not None:
            fused.bias = nn.Parameter(torch.cat([part.bias for part in parts]).detach(), requires_grad=False)
