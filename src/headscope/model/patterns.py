"""The patterns of heads on a prompt, one at a time: notebook, page, lesson and live page read them here.

Cost: one pass as far as the last attention. Memory: the patterns of one layer, O(heads * n_tokens^2), beside
what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.model.attention import Attention
from headscope.model.interface import Visit
from headscope.model.model import Model


def patterns(
    model: Model,
    ids: Int[Tensor, "prompt position"],
    see: Callable[[HeadId, Float[Tensor, "prompt query key"]], None],
    heads: Iterable[HeadId] | None = None,
    *,
    edit: Visit | None = None,
) -> None:
    """Show `see` each head's probabilities, exact, as the model runs.

    Args:
        model: Loaded.
        ids: Prompts of one length.
        see: Called with a head and its pattern. Keys that a family adds of its own are left out.
        heads: These alone; by default every head.
        edit: Changes what the heads write, as in `Model.run`.

    Raises:
        ArgumentError: a head that does not run on these ids: a looped model calls its layer less often.
    """
    n_tokens = ids.shape[1]
    wanted = None if heads is None else set(heads)
    layers = None if wanted is None else {(head.layer, head.call) for head in wanted}
    seen: set[HeadId] = set()

    def visit(attention: Attention) -> Tensor | None:
        if layers is None or (attention.layer, attention.call) in layers:
            found = attention.pattern()[..., :n_tokens, :n_tokens]
            for number in range(found.shape[1]):
                head = HeadId(attention.layer, number, attention.call)
                if wanted is None or head in wanted:
                    seen.add(head)
                    see(head, found[:, number])
        return None if edit is None else edit(attention)

    model.run(ids, visit, stop_at_last=True)
    if unseen := sorted((wanted or set()) - seen):
        raise ArgumentError(f"{model.id} does not run {unseen[0]}: its layer's attention is called less often.")


def as_bytes(pattern: Float[Tensor, "query key"]) -> UInt8[np.ndarray, " place"]:
    """Attention as the page keeps it: the lower triangle, row by row, 255 for a probability of 1."""
    rounded = (pattern.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return rounded[np.tril_indices(len(rounded))]
