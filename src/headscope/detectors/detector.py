"""A detector says, for any prompt, which keys each query would attend to if the head played a certain role.

    score[h] = mean over queries of  sum over that query's targets of  pattern[h, query, key]

A detector is a function from token ids to `Targets`. Yours in three lines:

    def two_back(tokens):
        query = np.arange(2, len(tokens))
        return Targets(query=query, key=query - 2)

    hs.scan(model, detectors=[*hs.DETECTORS, Detector("two_back", two_back)])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from headscope.errors import ArgumentError, ShapeError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Targets:
    """(query, key) places in one prompt. A query without a target is not scored."""

    query: Int[np.ndarray, " target"]
    """Position of each query."""
    key: Int[np.ndarray, " target"]
    """Position of its key, at most the query's."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A named role."""

    name: str
    """Letters, digits and underscores: it becomes a column and a JSON key."""
    find: Callable[[np.ndarray], Targets]
    """From the token ids of one prompt to its targets."""
    needs_control: bool = False
    """The role is about content: where the probe has a control, a head has it only if at least half of its score is
    gone there. Without a control, as on your own tokens, the score alone decides."""

    def targets(self, tokens: Int[np.ndarray, " position"]) -> Targets:
        """Targets of one prompt, checked, ordered by query, without doubles.

        Raises:
            ArgumentError: the detector's name is not a word, or it returns something else than `Targets`.
            ShapeError: places are no whole numbers, do not pair up, or lie outside the prompt or after their query.
        """
        if not self.name.isidentifier():
            raise ArgumentError(f"detector name {self.name!r} is not a word of letters, digits and underscores.")
        found = self.find(tokens.copy())
        if not isinstance(found, Targets):
            raise ArgumentError(
                f"detector {self.name} returned a {type(found).__name__}; it must return Targets(query=..., key=...)."
            )
        query, key = np.asarray(found.query), np.asarray(found.key)
        if query.shape != key.shape or query.ndim != 1:
            raise ShapeError(
                f"detector {self.name}: query has shape {query.shape} and key {key.shape}; they must pair up."
            )
        if any(places.size and places.dtype.kind not in "iu" for places in (query, key)):
            raise ShapeError(f"detector {self.name}: places must be whole numbers, not {query.dtype} and {key.dtype}.")
        query, key = query.astype(np.int64), key.astype(np.int64)
        if len(query) and (key.min() < 0 or query.max() >= len(tokens) or (key > query).any()):
            raise ShapeError(
                f"detector {self.name}: a target is outside the prompt of {len(tokens)} tokens or after its query; "
                "targets need 0 <= key <= query."
            )
        places = np.unique(np.stack([query, key], axis=1), axis=0)
        return Targets(query=places[:, 0], key=places[:, 1])
