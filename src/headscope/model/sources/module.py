"""Any `nn.Module` that takes token ids and gives logits, alone, first in a tuple, or in a field `logits`.

What cannot be read off the module is read off one short pass: the table that the ids look up is the embedding, the
linear layer whose output is the logits is the unembedding, and tables that are cut to the length of the input bound the
context. `forward`, `max_tokens` and `tokenizer` of `headscope.load` say what that pass cannot show.
"""

# pyright: reportUnknownVariableType=false
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from headscope.errors import UnsupportedModel, brief
from headscope.model.backbone import Backbone, stated_context
from headscope.model.scope import evaluating, hooking
from headscope.model.sources import Found, Options

PLACE = 60
"""Sources are asked in this order."""

N_TOKENS = 5
"""Length of the pass, over ids 0 and 1 alone: any vocabulary and nearly any context has room for it."""

_TARGETS = ("targets", "target", "labels", "y")
_HOW = "write load(model, forward=lambda ids: ...), which gives logits [batch position vocabulary] for ids"


def backbone(
    module: nn.Module, forward: Callable[[Tensor], Any] | None = None, max_tokens: int | None = None
) -> Backbone:
    """How to use this module.

    Raises:
        UnsupportedModel: it does not give logits for token ids alone; the message shows the call to write.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise UnsupportedModel(
            f"{type(module).__name__} holds compiled TorchScript, whose attention cannot be seen; load the Python "
            "module that it was compiled from."
        )
    device = next((weight.device for weight in module.parameters()), torch.device("cpu"))
    ids = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 1, 0]], device=device)
    failure: Exception | None = None
    for call in [forward] if forward is not None else list(_calls(module)):
        looked = _Looked(ids)
        outputs: dict[nn.Module, Tensor] = {}
        linear = [part for part in module.modules() if _is_linear(part)]
        try:
            with torch.no_grad(), evaluating(module), hooking(linear, after=_keep(outputs)), looked:
                logits = logits_in(call(ids), ids)
        except Exception as error:  # whatever the module's own code raises
            failure = failure or error
            continue
        if logits is None:
            continue
        return _of(module, call, looked, outputs, logits, max_tokens)
    name = type(module).__name__
    if failure is not None:
        what = f"fails on token ids alone ({type(failure).__name__}: {brief(failure)})"
    else:
        what = "gives no logits for every token of its input"
    raise UnsupportedModel(f"{name} {what}; {_HOW}.")


def _calls(module: nn.Module) -> list[Callable[[Tensor], Any]]:
    """Ways to call a module for the logits of every token: with ids alone, or with ids as their own targets too."""
    calls: list[Callable[[Tensor], Any]] = [lambda ids: module(ids)]
    try:
        names = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        names = []
    if "return_type" in names:  # TransformerLens gives the loss unless it is asked for logits
        return [lambda ids: module(ids, return_type="logits")]
    for name in _TARGETS:
        if name in names:
            calls.append(lambda ids, name=name: module(ids, **{name: ids}))
    return calls


def logits_in(given: Any, ids: Tensor) -> Tensor | None:
    """The first tensor [batch position vocabulary] in what a module gave."""
    if isinstance(given, Tensor):
        fits = given.dim() == 3 and given.shape[:2] == ids.shape and given.is_floating_point()
        return given if fits else None
    named = given.get("logits") if isinstance(given, dict) else getattr(given, "logits", None)
    if named is not None:
        return logits_in(named, ids)
    if isinstance(given, (tuple, list)):
        return next((found for one in given if (found := logits_in(one, ids)) is not None), None)
    return None


class _Looked(TorchFunctionMode):
    """The tables that a pass looks up, and those that it cuts to the length of its input."""

    def __init__(self, ids: Tensor) -> None:
        super().__init__()
        self.ids = ids
        self.table: Tensor | None = None
        self.n_ids: int | None = None
        self.lengths: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.embedding:
            self._look_up(kwargs.get("weight", args[1] if len(args) > 1 else None), args[0])
        elif func is F.one_hot and self._is_ids(args[0]):
            self.n_ids = result.shape[-1]
        elif func is Tensor.__getitem__:
            table, places = args[0], args[1]
            first = places[0] if isinstance(places, tuple) and places else places
            if isinstance(first, Tensor) and first.dtype in (torch.int64, torch.int32):
                self._look_up(table, first)
            else:
                self._cut(table, result)
        elif func in (torch.index_select, Tensor.index_select, torch.narrow, Tensor.narrow):
            self._cut(args[0], result)
        return result

    def _is_ids(self, given: Tensor) -> bool:
        return given.numel() == self.ids.numel() and torch.equal(given.reshape(-1), self.ids.reshape(-1))

    def _look_up(self, table: Any, places: Tensor) -> None:
        if not isinstance(table, Tensor) or table.dim() < 2:
            return
        if self._is_ids(places):
            self.table, self.n_ids = table, table.shape[0]
        elif places.shape[-1] == N_TOKENS and int(places.max()) - int(places.min()) == N_TOKENS - 1:
            self.lengths.append(table.shape[0] - int(places.min()))

    def _cut(self, table: Tensor, result: Tensor) -> None:
        """A table of positions, of rotary angles or a mask, cut to the input's length."""
        if table.requires_grad or table.grad_fn is None:
            for whole, part in zip(table.shape, result.shape, strict=False):
                if part == N_TOKENS and whole > 2 * N_TOKENS and table.dim() == result.dim():
                    self.lengths.append(whole)


def _is_linear(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2 and not isinstance(part, nn.Embedding)


def _keep(outputs: dict[nn.Module, Tensor]) -> Any:
    def after(part: nn.Module, args: Any, named: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[part] = output

    return after


def _of(
    module: nn.Module,
    call: Callable[[Tensor], Any],
    looked: _Looked,
    outputs: dict[nn.Module, Tensor],
    logits: Tensor,
    max_tokens: int | None,
) -> Backbone:
    table = looked.table
    embedding = next(
        (part for part in module.modules() if isinstance(part, nn.Embedding) and part.weight is table), None
    )
    heads = [part for part, given in outputs.items() if given.shape == logits.shape and torch.equal(given, logits)]
    n_predicted = int(logits.shape[-1])
    n_embeddings = n_predicted if looked.n_ids is None else looked.n_ids
    config = next((one for name in ("config", "cfg") if (one := getattr(module, name, None)) is not None), None)
    context = max_tokens or stated_context(config) or min(looked.lengths, default=None)

    def reads(given: Any) -> Tensor | None:
        if isinstance(given, Tensor):
            return given if given.dim() == 3 else None
        named = given.get("logits") if isinstance(given, dict) else getattr(given, "logits", None)
        if isinstance(named, Tensor):
            return named
        return next((one for one in given if isinstance(one, Tensor) and one.dim() == 3), None)

    return Backbone(
        module=module,
        call=call,
        family=type(module).__name__,
        embedding=embedding,
        unembedding=heads[0] if heads else None,
        n_embeddings=n_embeddings,
        n_predicted=min(n_predicted, n_embeddings),
        max_tokens=context,
        reads_logits=reads,
    )


def found(given: Any, options: Options) -> Found | None:
    """Any module."""
    if not isinstance(given, nn.Module):
        return None
    seen = backbone(given, options.forward, options.max_tokens)
    return Found(backbone=seen, tokenizer=getattr(given, "tokenizer", None), name=type(given).__name__)
