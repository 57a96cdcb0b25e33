"""A language model seen head by head: what `headscope.load` gives, and everything else takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from headscope.errors import ArgumentError, brief
from headscope.heads import HeadId, Heads, heads_in

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from headscope.model.backbone import Backbone
    from headscope.model.interface import Visit
    from headscope.model.kernels import Kernel
    from headscope.model.selfcheck import Check, RoutedCheck
    from headscope.model.taps import Route

EDGE = 3
"""Rows of the embedding, and columns from either side, by which a model is known."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Opened:
    """A model that was opened and checked, whatever the check found."""

    backbone: Backbone
    """The module that runs, and how to use it."""
    tokenizer: Any | None
    """Its transformers tokenizer; None leaves everything that needs only token ids."""
    id: str
    """Hub id, folder, `demo`, or the class of a model object."""
    revision: str | None
    """Commit of the hub repository, where it is known."""
    check: Check
    """What the self-check found."""
    state: str
    """The module as it was then; see `headscope.model.state`."""
    reopen: Callable[[], Opened]
    """Opens what was given once more: the same object, checked again where it has changed."""

    @property
    def hf(self) -> PreTrainedModel:
        """The module that runs: the transformers model, as it was given or loaded; of other kinds, their module."""
        return cast("PreTrainedModel", self.backbone.module)

    @property
    def module(self) -> torch.nn.Module:
        """The module that runs, of whatever kind; of a TransformerLens bridge a copy of its tree, with its weights."""
        return self.backbone.module

    @property
    def family(self) -> str:
        """Name of the architecture: transformers' own, like `gpt2`, or the class of another module."""
        return self.backbone.family

    @property
    def n_layers(self) -> int:
        """Decoder layers, with or without attention."""
        unread = () if self.check.unread is None else self.check.unread.layers
        last = max((*self.check.heads, *unread), default=-1) + 1
        return max(last, int(getattr(self.backbone.config, "num_hidden_layers", None) or 0))

    @property
    def n_heads(self) -> int:
        """Query heads of a layer; the largest number, where layers differ."""
        return max(self.check.heads.values(), default=0)

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """Every query head, by layer and number."""
        return tuple(HeadId(layer, head) for layer, n in sorted(self.check.heads.items()) for head in range(n))

    @property
    def n_kv_heads(self) -> int | None:
        """Key-value heads of a layer; None where the model's own code hides them."""
        return self.check.kv_heads

    @property
    def n_embeddings(self) -> int:
        """Rows of the embedding: token ids are below this."""
        return self.backbone.n_embeddings

    @property
    def d_model(self) -> int | None:
        """Width of an embedding; None where no module is one."""
        shape = getattr(getattr(self.backbone.embedding, "weight", None), "shape", ())
        return int(shape[1]) if len(shape) == 2 else None

    @property
    def embedding_corner(self) -> tuple[tuple[float, ...], ...] | None:
        """First and last three numbers of the embeddings of ids 0, 1 and 2, to four decimals, as PyTorch prints them.

        None where no module is an embedding, or its weight is packed, spread over processes or not there.
        """
        import torch

        weight: Any = getattr(self.backbone.embedding, "weight", None)
        plain = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.is_floating_point() and not weight.is_meta
        if not plain or weight.ndim != 2 or min(weight.shape[0], weight.shape[1] // 2) < EDGE:
            return None
        corner = weight.detach()[:EDGE, [*range(EDGE), *range(-EDGE, 0)]]
        return tuple(tuple(round(value, 4) for value in row) for row in corner.float().cpu().tolist())

    @property
    def n_predicted(self) -> int:
        """Number of tokens with a logit; smaller than the embedding if some ids are input-only."""
        return self.backbone.n_predicted

    @property
    def max_tokens(self) -> int | None:
        """Longest input in tokens, as the model states it; None where it states none."""
        return self.backbone.max_tokens

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the embedding."""
        return self.backbone.dtype

    @property
    def bos_token_id(self) -> int | None:
        """Start token: the tokenizer's, without a tokenizer the config's, or none."""
        source = self.tokenizer if self.tokenizer is not None else self.backbone.config
        start = getattr(source, "bos_token_id", None)
        return int(start) if isinstance(start, int) and 0 <= start < self.n_embeddings else None

    @property
    def pad_token_id(self) -> int | None:
        """Padding token: the tokenizer's, without a tokenizer the config's, or none."""
        source = self.tokenizer if self.tokenizer is not None else self.backbone.config
        pad = getattr(source, "pad_token_id", None)
        return int(pad) if isinstance(pad, int) else None

    @property
    def start_and_end_ids(self) -> frozenset[int]:
        """Ids that begin or end a text, by tokenizer and config."""
        return _whole(
            getattr(one, f"{name}_token_id", None)
            for one in (self.tokenizer, self.backbone.config)
            for name in ("bos", "eos")
        )

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids that are not text: the tokenizer's special tokens, or the start, end and padding ids of the config."""
        if self.tokenizer is not None:
            return _whole(self.tokenizer.all_special_ids)
        return _whole(getattr(self.backbone.config, f"{name}_token_id", None) for name in ("bos", "eos", "pad"))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Model(Opened):
    """A language model seen head by head. Made by `headscope.load`."""

    check: RoutedCheck
    """What the self-check found, and how attention is reached."""

    @property
    def route(self) -> Route:
        """How attention is reached."""
        return self.check.route

    def run(
        self,
        tokens: torch.Tensor,
        visit: Visit,
        *,
        kernel: Kernel | None = None,
        stop_at_last: bool = False,
        grad: bool = False,
    ) -> Any:
        """One forward pass with every attention call shown to `visit`; see `headscope.model.taps.forward`."""
        from headscope.model.taps import forward

        return forward(self.backbone, self.route, tokens, visit, kernel=kernel, stop_at_last=stop_at_last, grad=grad)

    def named(self, heads: Heads) -> tuple[HeadId, ...]:
        """Heads of this model, each once, in the order given.

        Args:
            heads: One or several of: `HeadId`, a name like `L5H1`, (layer, head), or a result of one head, like
                what `scan.heads` and `find_induction_heads` give.

        Raises:
            ArgumentError: no head at all, something that names none, or heads that the model does not have.
        """
        found = tuple(dict.fromkeys(heads_in(heads)))
        if not found:
            raise ArgumentError("there is no head; name at least one, like L5H1.")
        missing = [one for one in found if one.call < 0 or not 0 <= one.head < self.check.heads.get(one.layer, 0)]
        if missing:
            raise ArgumentError(
                f"{self.id} has no head {brief(', '.join(map(str, missing)))}; it has {self.n_layers} layers of up to "
                f"{self.n_heads} heads, counted from 0."
            )
        return found


def _whole(ids: Iterable[Any]) -> frozenset[int]:
    """Those that are token ids, alone or in a list of several."""
    found: set[int] = set()
    for one in ids:
        several = cast("list[Any]", one) if isinstance(one, list) else [one]
        found |= {each for each in several if isinstance(each, int)}
    return frozenset(found)
