"""The layer between headscope and a model's module: ids in, logits out, and what surrounds the attention.

Everything above sees a model through its `Backbone`. Each kind of model that can be opened fills one in, in a file of
its own under `headscope.model.sources`; how attention is reached is a `Route`, which the self-check finds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

CONTEXTS = (
    "max_position_embeddings",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "n_positions",
    "n_ctx",
    "block_size",
)
"""Names under which configs state the longest input."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Backbone:
    """A language model's module, and how to use it."""

    module: nn.Module
    """What runs: every parameter, and every module whose hooks are used, is in its tree."""
    call: Callable[[Tensor], Any]
    """Runs the module on ids [batch position]; what it gives, `output` reads."""
    family: str
    """Name of the architecture: transformers' own, like `gpt2`, or the class of another module."""
    embedding: nn.Module | None
    """The module whose `weight` [token d_model] turns ids into vectors; None where no module is one."""
    unembedding: nn.Module | None
    """The module that gives logits from the last residual stream; None where no module does that alone."""
    n_embeddings: int
    """Token ids are below this."""
    n_predicted: int
    """Token ids below this have a logit; smaller than `n_embeddings` where some ids are input-only."""
    max_tokens: int | None
    """Longest input; None where none is stated."""
    config: Any | None = None
    """Where special token ids and the number of layers are named; None where nothing names them."""
    reads_logits: Callable[[Any], Tensor | None] | None = None
    """Finds logits [batch position vocabulary] in what `call` gives; by default in a field `logits`."""

    def output(self, given: Any) -> Tensor:
        """Logits, or the last hidden state of a model without a head, in what `call` gave."""
        logits = self.logits(given)
        if logits is not None:
            return logits
        return given if isinstance(given, Tensor) else given[0]

    def logits(self, given: Any) -> Tensor | None:
        """Logits in what `call` gave; None without a language-model head."""
        if self.reads_logits is not None:
            return self.reads_logits(given)
        found = getattr(given, "logits", None)
        return found if isinstance(found, Tensor) else None

    def run(self, ids: Int[Tensor, "batch position"]) -> Tensor:
        """`output` of these ids, with the model as it is."""
        return self.output(self.call(ids))

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        from headscope.model.parallel import input_device

        if self.embedding is not None:
            return input_device(self.embedding)
        return next((weight.device for weight in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the embedding; where no module is one, of the first parameter."""
        weight = getattr(self.embedding, "weight", None)
        weights = [weight] if isinstance(weight, Tensor) else self.module.parameters()
        return next((one.dtype for one in weights if one.is_floating_point()), torch.float32)


def stated_context(config: Any) -> int | None:
    """Longest input in tokens, as a config states it; None where it states none."""
    for name in CONTEXTS:
        limit = getattr(config, name, None)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    return None
