"""The roles every scan looks for. All earlier copies count, for any token sequence, not only for two repeats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from headscope.detectors.detector import Detector, Targets
from headscope.errors import ArgumentError

Tokens = Int[np.ndarray, " position"]


def induction(tokens: Tokens) -> Targets:
    """The tokens after every earlier copy of the query's token: prefix matching.

    targets(i) = {j + 1 : t_j = t_i, j < i}

    For i = j + 1 (a token doubled) the target is the query itself, as in the published definition.

    Reference:
        Olsson et al. 2022, arXiv:2209.11895.
    """
    query, copy = earlier_copies(tokens)
    return Targets(query=query, key=copy + 1)


def induction_recent(tokens: Tokens) -> Targets:
    """The token after the most recent earlier copy of the query's token only."""
    query, copy = earlier_copies(tokens)
    last = np.append(query[1:] != query[:-1], True) if len(query) else np.zeros(0, dtype=bool)
    return Targets(query=query[last], key=copy[last] + 1)


def duplicate_token(tokens: Tokens) -> Targets:
    """Every earlier copy of the query's token: targets(i) = {j : t_j = t_i, j < i}."""
    query, copy = earlier_copies(tokens)
    return Targets(query=query, key=copy)


def previous_token(tokens: Tokens) -> Targets:
    """The token before: key = query - 1."""
    query = np.arange(1, len(tokens))
    return Targets(query=query, key=query - 1)


def current_token(tokens: Tokens) -> Targets:
    """The token itself: key = query. The first query, which can see nothing else, is left out."""
    query = np.arange(1, len(tokens))
    return Targets(query=query, key=query)


def first_token(tokens: Tokens) -> Targets:
    """The first token, where idle heads rest: key = 0. The first query is left out."""
    query = np.arange(1, len(tokens))
    return Targets(query=query, key=np.zeros_like(query))


def earlier_copies(tokens: Tokens) -> tuple[np.ndarray, np.ndarray]:
    """Every pair (i, j) with t_j = t_i and j < i, ordered by i, then j. O(n log n + pairs)."""
    order = np.argsort(tokens, kind="stable")
    place = np.arange(len(tokens))
    fresh = np.diff(tokens[order], prepend=tokens[order[:1]] - 1) != 0
    start = np.maximum.accumulate(np.where(fresh, place, 0))
    n_earlier = place - start  # copies of the same token before this one, in sorted order
    late = np.repeat(place, n_earlier)
    early = np.arange(len(late)) - np.repeat(np.cumsum(n_earlier) - n_earlier, n_earlier) + start[late]
    query, copy = order[late], order[early]
    by_query = np.lexsort((copy, query))
    return query[by_query], copy[by_query]


DETECTORS: tuple[Detector, ...] = (
    Detector("induction", induction, needs_control=True),
    Detector("induction_recent", induction_recent, needs_control=True),
    Detector("previous_token", previous_token),
    Detector("current_token", current_token),
    Detector("first_token", first_token),
    Detector("duplicate_token", duplicate_token, needs_control=True),
)
"""All built-in detectors; a scan runs every one of them in the same forward pass."""


def resolve(detectors: Sequence[Detector | str] | None) -> tuple[Detector, ...]:
    """Detectors from names and objects; a single name counts as a list of one; all built-in ones by default.

    Raises:
        ArgumentError: an unknown name, two detectors of one name, or none at all.
    """
    known = {detector.name: detector for detector in DETECTORS}
    if detectors is None:
        return DETECTORS
    if isinstance(detectors, str):
        detectors = [detectors]
    unknown = [one for one in detectors if isinstance(one, str) and one not in known]
    if unknown:
        raise ArgumentError(f"no detector {unknown[0]!r}; there are {', '.join(known)}.")
    chosen = tuple(known[one] if isinstance(one, str) else one for one in detectors)
    names = [detector.name for detector in chosen]
    if not names:
        raise ArgumentError("there is no detector; name at least one.")
    if len(set(names)) < len(names):
        raise ArgumentError(f"two detectors share a name among {', '.join(names)}; names must differ.")
    return chosen
