"""What composition gives: every pair's score with its random baseline, and the document.

Formulas and what misleads are in `headscope.evidence.composition.measure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
from jaxtyping import Float

from headscope.errors import ArgumentError
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId
from headscope.records.codec import encode
from headscope.records.common import ModelInfo, Provenance
from headscope.records.document import WrittenDocument

if TYPE_CHECKING:
    import pandas as pd

PairKind = Literal["q", "k", "v"]
KINDS: tuple[PairKind, ...] = ("q", "k", "v")

ROUNDING = 1e-6
"""A map this small beside its factors, or beside what was removed from it, is rounding: it counts as zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadPair:
    """How much of what one head writes a later one reads."""

    sender: HeadId
    """In the earlier layer."""
    receiver: HeadId
    """In the later layer."""
    kind: PairKind
    """Into the receiver's queries, keys or values."""
    sender_kv_head: int
    """Whose W_V the sender uses."""
    receiver_kv_head: int
    """Whose W_K and W_V the receiver uses."""
    score: float
    """CS, in [0, 1]."""
    ratio: float
    """Score over the root mean square of a randomly rotated pair's: 1 by chance."""
    z: float | None
    """CS^2 less its mean under random rotation, in standard deviations; None where no rotation changes it."""

    def __repr__(self) -> str:
        return f"HeadPair({self.sender} -> {self.receiver}.{self.kind}, {self.score:.3f}, {self.ratio:.2f} x chance)"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """Composition of all pairs, as numbers alone."""

    heads: tuple[HeadId, ...]
    """The order of all axes: by layer, then by head."""
    kv_heads: tuple[int, ...]
    """Which KV head each of them uses."""
    n_dimensions: int
    """Of the stream: d_model, or one less where it is centred."""
    scores: dict[str, Float[np.ndarray, "sender receiver"]]
    """By kind; NaN where the sender is in no earlier layer, or one of the two maps is zero."""
    sender_rank: Float[np.ndarray, " sender"]
    """(sum s^2)^2 / sum s^4 over the singular values of each head's W_V W_O; NaN where it is zero."""
    receiver_rank: dict[str, Float[np.ndarray, " receiver"]]
    """The same of what each head reads with, by kind."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Composition(WrittenDocument):
    """Q-, K- and V-composition of every pair of heads."""

    schema: ClassVar[str] = "headscope.composition/1"
    model: ModelInfo
    """Which model."""
    fold: bool
    """Whether normalisations are folded into the weights."""
    remove_top: int
    """How many of each map's largest singular directions were taken out first."""
    numbers: Scores
    """Arrays over all heads."""
    notes: tuple[str, ...]
    """What this model's architecture does to the claim."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost; no token is read but those that find the weights."""

    @property
    def heads(self) -> tuple[HeadId, ...]:
        """The order of both axes of `scores`."""
        return self.numbers.heads

    @property
    def kinds(self) -> tuple[PairKind, ...]:
        """Which kinds were scored."""
        return tuple(kind for kind in KINDS if kind in self.numbers.scores)

    @property
    def scores(self) -> dict[str, Float[np.ndarray, "sender receiver"]]:
        """By kind; NaN where the sender is in no earlier layer, or one of the two writes or reads nothing."""
        return self.numbers.scores

    def pair(self, sender: HeadId | str, receiver: HeadId | str, kind: str) -> HeadPair:
        """One pair.

        Raises:
            ArgumentError: a head that the model does not have, a sender that is in no earlier layer, a kind that was
                not scored, or a head that writes or reads nothing.
        """
        kind, row, column = self._kind(kind), self._place(sender), self._place(receiver)
        if self.heads[row].layer >= self.heads[column].layer:
            raise ArgumentError(
                f"{self.heads[row]} is in no earlier layer than {self.heads[column]}, so it sends nothing to it; "
                "name the earlier head first."
            )
        for place, rank, does in (
            (row, self.numbers.sender_rank, "writes"),
            (column, self.numbers.receiver_rank[kind], "reads"),
        ):
            if np.isnan(rank[place]):
                raise ArgumentError(
                    f"{self.heads[place]} {does} nothing, so {self.heads[row]} -> {self.heads[column]} has no "
                    f"{kind}-score; name another head."
                )
        return self._pair(row, column, kind, self._z(kind))

    def ranked(self, receiver: HeadId | str, kind: str) -> list[HeadPair]:
        """Every sender to one receiver, largest score first; empty for a receiver in the first layer.

        Raises:
            ArgumentError: a head that the model does not have, or a kind that was not scored.
        """
        kind, column = self._kind(kind), self._place(receiver)
        scores, z = self.scores[kind][:, column], self._z(kind)
        rows = np.flatnonzero(np.isfinite(scores))
        return [
            self._pair(int(row), column, kind, z) for row in rows[np.argsort(-scores[rows].round(6), kind="stable")]
        ]

    def to_frame(self) -> pd.DataFrame:
        """One row per pair and kind: sender and receiver with their KV heads, kind, score, ratio, z, model."""
        import pandas as pd

        layers, heads = (np.array([getattr(head, name) for head in self.heads], int) for name in ("layer", "head"))
        kv_heads = np.array(self.numbers.kv_heads, int)
        parts: list[pd.DataFrame] = []
        for kind in self.kinds:
            rows, columns = self._valid(kind)
            score = self.scores[kind][rows, columns]
            parts.append(
                pd.DataFrame(
                    {
                        "sender_layer": layers[rows],
                        "sender_head": heads[rows],
                        "sender_kv_head": kv_heads[rows],
                        "receiver_layer": layers[columns],
                        "receiver_head": heads[columns],
                        "receiver_kv_head": kv_heads[columns],
                        "kind": np.full(len(rows), kind),
                        "score": score,
                        "ratio": score * self._root,
                        "z": self._z(kind)[rows, columns],
                    }
                )
            )
        return pd.concat(parts, ignore_index=True).assign(model=self.model.id)

    def body(self) -> dict[str, Any]:
        """What the document holds.

        `pairs` holds columns, by kind: `sender` and `receiver` count into `heads`, and only pairs with a score are in.
        """
        pairs: dict[str, dict[str, list[Any]]] = {}
        for kind in self.kinds:
            rows, columns = self._valid(kind)
            score, z = self.scores[kind][rows, columns], self._z(kind)[rows, columns]
            pairs[kind] = {
                "sender": rows.tolist(),
                "receiver": columns.tolist(),
                "score": score.tolist(),
                "ratio": (score * self._root).tolist(),
                "z": [None if np.isnan(one) else float(one) for one in z],
            }
        return {
            "model": encode(self.model),
            "fold": self.fold,
            "remove_top": self.remove_top,
            "n_dimensions": self.numbers.n_dimensions,
            "heads": [
                {**encode(head), "kv_head": kv_head}
                for head, kv_head in zip(self.heads, self.numbers.kv_heads, strict=True)
            ],
            "pairs": pairs,
            "notes": list(self.notes),
            "provenance": encode(self.provenance),
            "timing": encode(self.timing),
        }

    def __repr__(self) -> str:
        best: list[str] = []
        for kind in self.kinds:
            rows, columns = self._valid(kind)
            if len(rows):
                top = int(np.argmax(self.scores[kind][rows, columns].round(6)))
                best.append(repr(self._pair(int(rows[top]), int(columns[top]), kind, self._z(kind))))
        return f"Composition({self.model.id}: {', '.join(best) or 'no pair'})"

    @property
    def _root(self) -> float:
        return self.numbers.n_dimensions**0.5

    def _kind(self, kind: str) -> PairKind:
        if kind not in self.scores:
            raise ArgumentError(f"kind={kind!r} was not scored; this result has {', '.join(self.kinds)}.")
        return cast(PairKind, kind)

    def _place(self, head: HeadId | str) -> int:
        head = head if isinstance(head, HeadId) else HeadId.parse(head)
        if head not in self.heads:
            raise ArgumentError(
                f"{self.model.id} has no head {head}; it has {self.model.n_layers} layers of up to "
                f"{self.model.n_heads} heads, counted from 0."
            )
        return self.heads.index(head)

    def _valid(self, kind: PairKind) -> tuple[np.ndarray, np.ndarray]:
        rows, columns = np.nonzero(np.isfinite(self.scores[kind]))
        return rows, columns

    def _z(self, kind: PairKind) -> Float[np.ndarray, "sender receiver"]:
        numbers = self.numbers
        return z_scores(
            self.scores[kind], numbers.sender_rank[:, None], numbers.receiver_rank[kind], numbers.n_dimensions
        )

    def _pair(self, row: int, column: int, kind: PairKind, z: Float[np.ndarray, "sender receiver"]) -> HeadPair:
        score, deviations = float(self.scores[kind][row, column]), float(z[row, column])
        return HeadPair(
            sender=self.heads[row],
            receiver=self.heads[column],
            kind=kind,
            sender_kv_head=self.numbers.kv_heads[row],
            receiver_kv_head=self.numbers.kv_heads[column],
            score=score,
            ratio=score * self._root,
            z=None if np.isnan(deviations) else deviations,
        )


def z_scores(
    score: Float[np.ndarray, "*pair"],
    sender_rank: Float[np.ndarray, "*#pair"],
    receiver_rank: Float[np.ndarray, "*#pair"],
    n_dimensions: int,
) -> Float[np.ndarray, "*pair"]:
    """(score^2 - 1 / d) / sd, with the variance of `headscope.evidence.composition.measure`; NaN where it is zero."""
    d = n_dimensions
    # A rank of d, up to rounding, leaves nothing that a rotation could change.
    spread = [
        np.where(1 / rank - 1 / d > ROUNDING / d, 1 / rank - 1 / d, np.nan) for rank in (sender_rank, receiver_rank)
    ]
    if d < 2:
        return np.full(score.shape, np.nan)
    return (score**2 - 1 / d) / np.sqrt(2 * spread[0] * spread[1] / ((d - 1) * (d + 2)))
