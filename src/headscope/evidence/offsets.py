"""Fixed offsets: does a head look a set distance back, whatever the tokens are?

    score[h, d] = mean over prompts, and over queries q > d, of pattern[h, q, q - d]

read on prompts in which nothing repeats, so that content gives no offset away; the key at position 0, where idle heads
rest, is left out. `d = 1` is the previous token; the best d >= 2 is what makes a head positional.

Cost: no pass of its own, since a scan reads the controls anyway; and one layer's whole patterns, at most 64 MiB of them
at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from headscope.errors import ShapeError
from headscope.heads import HeadId
from headscope.model.attention import Attention
from headscope.probes.probe import Tokens

MIN_OFFSET = 2
MIN_QUERIES = 8
"""An offset is scored where at least so many queries of a prompt have it."""
LEAST_TOKENS = MIN_OFFSET + MIN_QUERIES + 1
"""A shorter prompt has no offset to score."""
BATCH_NUMBERS = 2**24
"""Pattern entries formed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOffset:
    """The distance that a head looks back most."""

    offset: int
    """Tokens back, at least 2."""
    mean: float
    """Attention there, in [0, 1], mean over queries and prompts."""


class Offsets:
    """Each head's attention at every offset, read while a scan reads a probe's controls.

    Raises:
        ShapeError: controls of different lengths, or too short for any offset.
    """

    def __init__(self, controls: Sequence[Tokens]) -> None:
        self._length = len(controls[0])
        self._offsets = range(MIN_OFFSET, self._length - MIN_QUERIES)
        if any(len(control) != self._length for control in controls) or not self._offsets:
            raise ShapeError(
                f"offsets are read on prompts of one length of at least {LEAST_TOKENS} tokens; got lengths "
                f"{min(map(len, controls))} to {max(map(len, controls))}."
            )
        self._found: dict[tuple[int, int], dict[int, np.ndarray]] = {}

    def watch(self, attention: Attention, index: Sequence[int]) -> None:
        """Keep this layer's attention at each offset in the controls, which come after as many prompts in the batch."""
        found = self._found.setdefault((attention.layer, attention.call), {})
        size = max(1, BATCH_NUMBERS // (max(1, attention.n_heads) * self._length**2))
        for start in range(0, len(index), size):
            part = index[start : start + size]
            first = len(index) + start
            pattern = attention.of(slice(first, first + len(part))).pattern()
            # diagonal(-d) starts at query d, whose key is position 0: that one is left out.
            means = [pattern.diagonal(-d, 2, 3)[..., 1:].float().mean(-1) for d in self._offsets]
            found.update(zip(part, torch.stack(means, dim=2).cpu().double().numpy(), strict=True))

    def best(self) -> dict[HeadId, BestOffset]:
        """Each head's best offset, in the mean over controls."""
        return {
            HeadId(layer, head, call): BestOffset(offset=self._offsets[int(row.argmax())], mean=float(row.max()))
            for (layer, call), rows in self._found.items()
            for head, row in enumerate(np.mean(list(rows.values()), axis=0))
        }
