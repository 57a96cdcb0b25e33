"""The same text through a second model: its losses, and which heads look elsewhere in it.

    d[h]   mean over queries q > 0 of  sum over k of |a[q, k] - b[q, k]| / 2        0: they look alike, 1: nowhere alike

of head h in both models, by number. Both read the same tokens, so a model of another vocabulary is refused.

Cost: a reading and a pass of each model; patterns of both are kept in float16 while they are compared.

One text proves nothing: `headscope compare` tests differences over many prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headscope.errors import ArgumentError
from headscope.evidence.compare.vocabulary import shared_vocabulary
from headscope.explore.reading import Off, Reader, Reading
from headscope.heads import HeadId, ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """One head in both models."""

    head: HeadId
    """Which, in either."""
    distance: float
    """Mean total variation between its patterns, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What the second model makes of a text, beside the first."""

    reading: Reading
    """Of the second."""
    difference: float | None
    """Its mean loss minus the first's, with the same heads off; None where nothing is predictable."""
    heads: tuple[Apart, ...]
    """Heads that both have, the largest distance first."""


class Against:
    """Two models that read the same text.

    Raises:
        ArgumentError: their vocabularies or start tokens differ.
    """

    def __init__(self, first: Reader, second: Reader) -> None:
        if shared_vocabulary(first.model, second.model) is None:
            raise ArgumentError(
                f"{second.model.id} has another vocabulary or start token than {first.model.id}, so that the same "
                "text is other tokens; use `headscope compare`, which gives each model prompts of its own."
            )
        self.first: Reader = first
        self.second: Reader = second

    def read(self, text: str, *, off: Sequence[HeadId | str] = (), method: Off = "mean") -> Beside:
        """The second model's reading, and how far apart the heads of both look; heads of `off` are off in both.

        Raises:
            TokenError: see `Reader.tokens`.
            ArgumentError: a head that either model does not have, or a text that their tokenizers cut differently.
            NonFiniteError: a loss is not a number.
        """
        ids = self.first.tokens(text), self.second.tokens(text)
        if not np.array_equal(ids[0], ids[1]):
            raise ArgumentError(
                f"{self.first.model.id} reads this text as {len(ids[0])} tokens and {self.second.model.id} as "
                f"{len(ids[1])}, not the same ones: their tokenizers cut it differently; try another text, or use "
                "`headscope compare`."
            )
        reading = self.second.read(text, off=off, method=method)
        other = self.first.read(text, off=off, method=method)
        means = [_mean(one) for one in (other, reading)]
        ours, theirs = (one.whole(text, off=off, method=method) for one in (self.first, self.second))
        found = [
            Apart(head=head, distance=float((ours[head].float() - theirs[head].float())[1:].abs().sum(1).mean()) / 2)
            for head in ours
            if head in theirs and len(ours[head]) > 1
        ]
        return Beside(
            reading=reading,
            difference=None if means[0] is None or means[1] is None else means[1] - means[0],
            heads=tuple(sorted(found, key=lambda one: ranking(one.distance, one.head))),
        )


def _mean(reading: Reading) -> float | None:
    if reading.mean_clean is None:
        return None
    return reading.mean_clean + (reading.delta_loss_nats or 0.0)
