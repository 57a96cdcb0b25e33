"""One prompt that a person can read, seen through every head: what each attends to, and what each token costs.

The prompt is of the probe's own kind, repeated tokens, drawn from whole words where the tokenizer marks them. Patterns
are kept as bytes, 255 for a probability of 1: the largest error is 1 / 510. Only the lower triangle is kept, row by
row, since nothing looks ahead.

Cost: two passes over one prompt, and those over the clean corpus of the ablation.

One prompt shows what a pattern looks like and proves nothing: the scores are means over the probe's prompts.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from headscope.detectors.standard import earlier_copies
from headscope.heads import HeadId
from headscope.interventions.ablation import AblatedHeads, Ablator, Method, losses
from headscope.model.load import Model
from headscope.model.patterns import as_bytes, patterns
from headscope.model.tokenizer import token_text
from headscope.probes import Probe
from headscope.probes.probe import Tokens
from headscope.probes.readable import readable
from headscope.records.codec import encode

BUDGET_BYTES = 6_000_000
"""Room for all patterns in one page, as text."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A prompt, where its two copies lie, what heads attend to in it, and the loss of each of its tokens."""

    tokens: Tokens
    """Ids."""
    first: tuple[int, int]
    """First copy: its first position and the one after its last."""
    second: tuple[int, int]
    """Second copy: the same."""
    patterns: dict[HeadId, UInt8[np.ndarray, " place"]]
    """Attention of the heads kept: lower triangle, row by row, 255 for 1."""
    left_out: int
    """Heads whose pattern is not kept, for want of room."""
    clean: Float[np.ndarray, " later"]
    """Loss of each token but the first, in nats."""
    ablated: Float[np.ndarray, " later"] | None
    """The same without `without`; None where it is empty."""
    without: tuple[HeadId, ...]
    """The heads taken out together."""

    def to_dict(self, model: Model | None) -> dict[str, Any]:
        """As the page reads it; without a model tokens have no text."""
        return {
            "tokens": [
                {"id": int(one), "text": None if model is None else token_text(model, int(one))} for one in self.tokens
            ],
            "first": list(self.first),
            "second": list(self.second),
            "patterns": [
                {**encode(head), "bytes": base64.b64encode(pattern.tobytes()).decode()}
                for head, pattern in self.patterns.items()
            ],
            "left_out": self.left_out,
            "loss": {
                "clean": [round(float(one), 5) for one in self.clean],
                "ablated": None if self.ablated is None else [round(float(one), 5) for one in self.ablated],
                "without": [encode(head) for head in self.without],
            },
        }


def example(
    model: Model,
    *,
    wanted: Sequence[HeadId] = (),
    without: Sequence[HeadId] = (),
    method: Method = "mean",
    seed: int = 0,
    budget_bytes: int = BUDGET_BYTES,
) -> Example:
    """Read one prompt.

    Args:
        model: A loaded model.
        wanted: Heads whose patterns are kept first, the most wanted first; then the others in order, while room lasts.
        without: Heads to take out together for the second loss.
        method: How they are taken out.
        seed: Of the prompt.
        budget_bytes: Room for the patterns, as text.

    Raises:
        ShapeError: the model's context or vocabulary is too small for the prompt.
        UnsupportedModel: the model has no LM head.
        NonFiniteError: a loss is not a number.
    """
    probe = readable(model, seed=seed)
    (tokens,) = probe.prompts
    first, second = _copies(tokens)
    found = _patterns(model, tokens)
    order = [head for head in dict.fromkeys([*wanted, *found]) if head in found]
    size = len(base64.b64encode(bytes(len(tokens) * (len(tokens) + 1) // 2)))
    kept = set(order[: max(1, budget_bytes // size)])
    clean, ablated = _losses(model, probe, tuple(without), method, seed)
    return Example(
        tokens=tokens,
        first=first,
        second=second,
        patterns={head: pattern for head, pattern in found.items() if head in kept},
        left_out=len(found) - len(kept),
        clean=clean,
        ablated=ablated,
        without=tuple(without),
    )


def _copies(tokens: Tokens) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the two copies of the run lie: the longest stretch that repeats at one distance."""
    query, copy = earlier_copies(tokens)
    stretches: list[tuple[int, int, int]] = []  # length, start, distance
    for distance in np.unique(query - copy):
        places = query[query - copy == distance]
        for part in np.split(places, np.flatnonzero(np.diff(places) != 1) + 1):
            stretches.append((len(part), int(part[0]), int(distance)))
    length, start, distance = max(stretches, key=lambda one: one[0])
    return (start - distance, start - distance + length), (start, start + length)


def _patterns(model: Model, tokens: Tokens) -> dict[HeadId, UInt8[np.ndarray, " place"]]:
    """Every head's attention, as bytes."""
    found: dict[HeadId, np.ndarray] = {}

    def see(head: HeadId, pattern: Tensor) -> None:
        found[head] = as_bytes(pattern[0])

    patterns(model, torch.from_numpy(tokens)[None].to(model.device), see)
    return dict(sorted(found.items()))


def _losses(
    model: Model, probe: Probe, without: tuple[HeadId, ...], method: Method, seed: int
) -> tuple[Float[np.ndarray, " later"], Float[np.ndarray, " later"] | None]:
    """Loss of each token but the first, clean and without these heads."""
    (tokens,) = probe.prompts
    ablator = Ablator.of(model, probe, method=method, seed=seed)
    queries = {str(query): [np.asarray([query])] for query in range(len(tokens) - 1)}
    worlds: list[AblatedHeads] = [frozenset(), *([frozenset(without)] if without else [])]
    by_query = losses(ablator, probe.prompts, queries, worlds)
    rows = np.stack([by_query[name][:, 0] for name in queries], axis=1)
    return rows[0], rows[1] if without else None
