"""Fixed offsets: does a head look a set distance back, whatever the tokens are?

    score[h, d] = mean over prompts, and over queries q > d, of pattern[h, q, q - d]

read on prompts in which nothing repeats, so that content gives no offset away; the key at position 0, where idle heads
rest, is left out. `d = 1` is the previous token; the best d >= 2 is what makes a head positional.

Cost: one pass, and one layer's whole pattern at a time, batch * head * position^2 numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headscope.errors import ShapeError
from headscope.heads import HeadId
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.memory import in_batches
from headscope.probes.probe import Tokens

MIN_OFFSET = 2
MIN_QUERIES = 8
"""An offset is scored where at least so many queries of a prompt have it."""
LEAST_TOKENS = MIN_OFFSET + MIN_QUERIES + 1
"""A shorter prompt has no offset to score."""
BATCH_NUMBERS = 2**24
"""Pattern entries of one layer in one pass, before memory runs out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOffset:
    """The distance that a head looks back most."""

    offset: int
    """Tokens back, at least 2."""
    mean: float
    """Attention there, in [0, 1], mean over queries and prompts."""


def best_offsets(model: Model, prompts: Sequence[Tokens]) -> dict[HeadId, BestOffset]:
    """Each head's best offset.

    Args:
        model: A loaded model.
        prompts: Of one length, in which nothing repeats.

    Raises:
        ShapeError: prompts of different lengths, or too short for any offset.
    """
    length = len(prompts[0])
    offsets = range(MIN_OFFSET, length - MIN_QUERIES)
    if any(len(prompt) != length for prompt in prompts) or not offsets:
        raise ShapeError(
            f"best_offsets needs prompts of one length of at least {LEAST_TOKENS} tokens; got lengths "
            f"{min(map(len, prompts))} to {max(map(len, prompts))}."
        )
    totals: dict[tuple[int, int], np.ndarray] = {}

    def run(part: Sequence[Tokens]) -> dict[tuple[int, int], np.ndarray]:
        found: dict[tuple[int, int], np.ndarray] = {}

        def visit(attention: Attention) -> None:
            pattern = attention.pattern()
            # diagonal(-d) starts at query d, whose key is position 0: that one is left out.
            means = [pattern.diagonal(-d, 2, 3)[..., 1:].float().mean(-1).sum(0) for d in offsets]
            found[attention.layer, attention.call] = torch.stack(means, dim=1).cpu().double().numpy()

        model.run(torch.from_numpy(np.stack(part)).to(model.device), visit, stop_at_last=True)
        return found

    size = max(1, BATCH_NUMBERS // (max(1, model.n_heads) * length * length))
    for _, found in in_batches(list(prompts), size, run):
        for at, sums in found.items():
            totals[at] = totals.get(at, 0) + sums
    return {
        HeadId(layer, head, call): BestOffset(offset=offsets[int(row.argmax())], mean=float(row.max()) / len(prompts))
        for (layer, call), rows in totals.items()
        for head, row in enumerate(rows)
    }
