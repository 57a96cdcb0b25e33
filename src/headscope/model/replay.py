"""Start the forward pass again at a later layer: many edits of one prompt, each paying only for what it changes.

    replay = Replay(model, tokens)          one clean pass; every decoder layer's output is kept
    replay.logits(visit, start=5, copies=8) layers 0 to 4 give what they gave, layers 5 and up compute, 8 times over

No family has code here. The model is called as usual and makes its own masks, rotary tables and final norm; only the
decoder layers before the start return what they returned before. `copies` puts that many copies of every prompt into
one batch, "worlds" that a visit may edit each in its own way: copy c of prompt b is row c * n_prompts + b.

Restarting is verified once per model: from every layer it must give the clean logits bit for bit.
Where it does not (layers that hand each other more than their output), every pass starts at layer 0, and `restarts`
says so.

Memory: one output per layer, n_layers * batch * position * d_model numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from headscope.errors import UnsupportedModel
from headscope.model.attention import Attention
from headscope.model.interface import Visit
from headscope.model.load import Model
from headscope.model.memory import out_of_memory
from headscope.model.names import stack_of
from headscope.model.scope import Forward, around, hooking
from headscope.model.selfcheck import FAMILY_ERRORS
from headscope.model.state import once
from headscope.model.taps import TOLERANCE


class Replay:
    """One clean pass over prompts of one length, from whose layers the model can be started again.

    Args:
        model: A loaded model with an LM head.
        tokens: The prompts, on the model's device.

    Raises:
        UnsupportedModel: the model gives no logits over its vocabulary.
    """

    def __init__(self, model: Model, tokens: Int[Tensor, "batch position"], *, _trying: bool = False) -> None:
        self.model: Model = model
        self.tokens: Tensor = tokens
        self._alone = not _trying and _unembeds_alone(model)
        self._layers = decoder_layers(model) if _trying or restarts(model) else []
        self.kept: list[Any] = []
        """What each decoder layer gave in the clean pass."""
        self._started: dict[tuple[int, int], int] = {}

    @property
    def n_prompts(self) -> int:
        """Prompts of the clean pass."""
        return self.tokens.shape[0]

    def clean(
        self, visit: Visit | None = None, *, places: Int[Tensor, "token 2"] | None = None, grad: bool = False
    ) -> Float[Tensor, "*place vocab"]:
        """The clean pass: its logits, as `logits` gives them. Keeps every layer's output, unless `grad`."""
        self.kept, self._started = [], {}
        begun = 0

        def note(attention: Attention) -> Tensor | None:
            self._started[attention.layer, attention.call] = max(0, begun - 1)
            return None if visit is None else visit(attention)

        def run(layer: nn.Module, own: Forward, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            nonlocal begun
            begun += 1
            result = own(*arguments, **named)
            if not grad:
                self.kept.append(result)
            return result

        with around(self._layers, run):
            return self._run(self.tokens, note, places, grad=grad)

    def start_of(self, layer: int, call: int = 0) -> int | None:
        """Which layer execution of the clean pass holds this attention call; 0 where restarts are not exact.

        None for an attention call that the clean pass did not make.
        """
        return self._started.get((layer, call))

    def logits(
        self,
        visit: Visit,
        *,
        start: int = 0,
        copies: int = 1,
        places: Int[Tensor, "token 2"] | None = None,
    ) -> Float[Tensor, "*place vocab"]:
        """Logits of `copies` copies of the prompts, computed from layer execution `start` on.

        Args:
            visit: Sees the attention of the layers that run, numbered as in a whole pass; what it returns replaces z.
            start: From `start_of`.
            copies: How often each prompt is in the batch.
            places: Batch row and position of each token whose logits are wanted; by default all.

        Returns:
            [row, position, vocabulary], or [token, vocabulary] for `places`.
        """
        with self._restarted(start, copies):
            return self._run(self.tokens.repeat(copies, 1), self._numbered(visit, start), places)

    def see(self, visit: Visit, *, start: int = 0, copies: int = 1) -> None:
        """The same for what `visit` sees alone; it may raise `taps.Stop` to leave early."""
        with self._restarted(start, copies):
            self.model.run(self.tokens.repeat(copies, 1), self._numbered(visit, start))

    @contextmanager
    def _restarted(self, start: int, copies: int) -> Generator[None, None, None]:
        """Within the block the layer executions before `start` give what they gave in the clean pass."""
        begun = 0

        def run(layer: nn.Module, own: Forward, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            nonlocal begun
            begun += 1
            return own(*arguments, **named) if begun > start else copied(self.kept[begun - 1], self.tokens, copies)

        with around(self._layers if start else [], run):
            yield

    def _numbered(self, visit: Visit, start: int) -> Visit:
        """`visit`, with calls numbered as in a whole pass: in looped models a layer's first calls may be skipped."""
        skipped = Counter(layer for (layer, _), begins in self._started.items() if begins < start)

        def numbered(attention: Attention) -> Tensor | None:
            n_skipped = skipped[attention.layer]
            return visit(replace(attention, call=attention.call + n_skipped) if n_skipped else attention)

        return numbered

    def _run(self, tokens: Tensor, visit: Visit, places: Tensor | None, *, grad: bool = False) -> Tensor:
        if places is None or not self._alone:
            logits = _logits(self.model, tokens, visit, grad=grad)
            return logits if places is None else _at(logits, places)
        with _unembedding_only(self.model, places):
            return _logits(self.model, tokens, visit, grad=grad)[0]


def decoder_layers(model: Model) -> list[nn.Module]:
    """The modules that follow each other along the residual stream: those numbered in the names of attention modules.

    Layers without attention, in hybrid models, are among them. Empty where no module is numbered.
    """
    stacks = dict.fromkeys(stack for name in model.route.layers if (stack := stack_of(name)) is not None)
    return [layer for stack in stacks for layer in model.module.get_submodule(stack).children()]


@once
def restarts(model: Model) -> bool:
    """Whether starting at any layer gives the clean logits bit for bit; tried once per model, on a short input."""
    n_layers = len(decoder_layers(model))
    if n_layers == 0:
        return False
    length = min(8, model.max_tokens or 8)
    tokens = (torch.arange(2 * length, device=model.device) * 7 % model.n_embeddings).reshape(2, length)
    replay = Replay(model, tokens, _trying=True)

    def ignore(attention: Attention) -> None:
        return None

    clean = replay.clean()
    limit = tolerance_of(clean)
    try:
        return len(replay.kept) >= n_layers and all(
            torch.equal(replay.logits(ignore, start=start), clean)
            and float((replay.logits(ignore, start=start, copies=2) - clean.repeat(2, 1, 1)).abs().max()) <= limit
            for start in range(1, len(replay.kept))
        )
    except FAMILY_ERRORS as error:  # layers that miss what the skipped ones would have left them
        if out_of_memory(error):
            raise
        return False


def copied(kept: Any, tokens: Int[Tensor, "prompt position"], copies: int) -> Any:
    """What a module gave for these prompts, for a batch of copies; it has a row for every prompt, or for every token.

    Tensors that broadcast over the batch stay as they are.
    """
    if copies == 1:
        return kept

    def repeat(part: Any) -> Any:
        if isinstance(part, Tensor) and part.dim() > 0 and part.shape[0] in (len(tokens), tokens.numel()):
            return part.repeat(copies, *[1] * (part.dim() - 1))
        return part

    return tree_map(repeat, kept)


def _logits(model: Model, tokens: Tensor, visit: Visit, *, grad: bool = False) -> Float[Tensor, "batch token vocab"]:
    logits = model.backbone.logits(model.run(tokens, visit, grad=grad))
    if logits is None or logits.dim() != 3:
        raise UnsupportedModel(
            f"{model.id} ({type(model.module).__name__}) gives no logits over a vocabulary, so its loss is not "
            "defined; load the model with its language-modelling head."
        )
    return logits


def _at(rows: Float[Tensor, "batch token d"], places: Int[Tensor, "place 2"]) -> Float[Tensor, "place d"]:
    row, position = places.to(rows.device).T
    return rows[row, position]


@contextmanager
def _unembedding_only(model: Model, places: Tensor) -> Generator[None, None, None]:
    """Within the block the unembedding reads these tokens alone, as one row."""
    head: Any = model.backbone.unembedding

    def gather(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return (_at(arguments[0], places)[None], *arguments[1:]), named

    with hooking([head], before=gather):
        yield


@once
def _unembeds_alone(model: Model) -> bool:
    """Whether unembedding some tokens gives the logits that unembedding all gives."""
    length = min(8, model.max_tokens or 8)
    tokens = (torch.arange(2 * length, device=model.device) * 5 % model.n_embeddings).reshape(2, length)
    places = torch.tensor([[0, length - 1], [1, 0], [1, length // 2]], device=model.device)

    def ignore(attention: Attention) -> None:
        return None

    logits = _logits(model, tokens, ignore)
    if not isinstance(model.backbone.unembedding, nn.Module):
        return False
    whole = _at(logits, places)
    try:
        with _unembedding_only(model, places):
            some = _logits(model, tokens, ignore)[0]
    except FAMILY_ERRORS as error:  # its own code wants every token
        if out_of_memory(error):
            raise
        return False
    return some.shape == whole.shape and float((some - whole).abs().max()) <= tolerance_of(whole)


def tolerance_of(logits: Tensor) -> float:
    """Largest difference from these logits that rounding explains."""
    return TOLERANCE.get(logits.dtype, TOLERANCE[torch.float32]) * max(1.0, float(logits.abs().max()))
