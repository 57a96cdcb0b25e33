"""Roles that a standard detector scores: the head looks somewhere on repeated tokens, and the loss depends on it.

score       attention on the detector's targets; the control is the same places where nothing repeats
zero, mean  change of the held-out second copy's loss without the head
specific    change of that loss when the head no longer reads the detector's targets, and all else as before: a head
            that looks there and matters for what it reads elsewhere does not have the role
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headscope.detectors.standard import resolve
from headscope.evidence.atlas.bench import Bench
from headscope.evidence.atlas.result import Finding
from headscope.evidence.atlas.role import Sample, Scored
from headscope.heads import HeadId
from headscope.probes.probe import Tokens

Places = Callable[[Tokens], np.ndarray]


def places_of(detector: str) -> Places:
    """A standard detector's targets as (query, key) pairs [place, 2]."""
    (found,) = resolve([detector])

    def places(tokens: Tokens) -> np.ndarray:
        targets = found.targets(tokens)
        return np.stack([targets.query, targets.key], axis=1)

    return places


def scored_by(detector: str) -> Callable[[Bench], Scored]:
    """Scores by a standard detector."""
    (found,) = resolve([detector])

    def score(bench: Bench) -> Scored:
        repeats = bench.repeats
        return Scored(
            heads=bench.heads,
            score=repeats[detector],
            chance=repeats[f"{detector} chance"],
            control=repeats[f"{detector} control"] if found.needs_control else None,
            probe=dict(bench.probe.settings),
        )

    return score


def on_repeats(bench: Bench, head: HeadId, places: Places) -> dict[str, Sample]:
    """The tests `zero`, `mean` and `specific` of one head on the held-out second copies."""
    found = {method: Sample(values=bench.removal(head, f"{method} second_copy")) for method in ("zero", "mean")}
    dropped = bench.dropped_places(head, [places(prompt) for prompt in bench.held_out.prompts])
    return found | ({"specific": Sample(values=dropped["second_copy"])} if dropped else {})


def tested_on(detector: str) -> Callable[[Bench, Scored, Sequence[HeadId]], Mapping[HeadId, Mapping[str, Sample]]]:
    """These tests, for each head."""
    places = places_of(detector)

    def test(bench: Bench, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
        return {head: on_repeats(bench, head, places) for head in heads}

    return test


def targets_of(detector: str) -> Callable[[Tokens, Finding], np.ndarray]:
    """`targets` of a role that a standard detector makes."""
    places = places_of(detector)

    def targets(tokens: Tokens, finding: Finding) -> np.ndarray:
        return places(tokens)

    return targets


def looking(detector: str) -> dict[str, Any]:
    """`score`, `test` and `targets` of a role that a standard detector makes."""
    return {"score": scored_by(detector), "test": tested_on(detector), "targets": targets_of(detector)}
