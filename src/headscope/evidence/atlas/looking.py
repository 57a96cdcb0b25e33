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
from headscope.evidence.atlas.finding import RoleFinding
from headscope.evidence.atlas.role import Scored
from headscope.evidence.atlas.runner import METHODS, RoleRunner
from headscope.evidence.atlas.samples import Sample
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


def scored_by(detector: str) -> Callable[[RoleRunner], Scored]:
    """Scores by a standard detector."""
    (found,) = resolve([detector])

    def score(runner: RoleRunner) -> Scored:
        repeats = runner.repeats
        return Scored(
            heads=runner.heads,
            score=repeats[detector],
            chance=repeats[f"{detector} chance"],
            control=repeats[f"{detector} control"] if found.needs_control else None,
            probe=dict(runner.probe.settings),
        )

    return score


def on_repeats(
    runner: RoleRunner, places: Mapping[HeadId, Places], *, name: str | None = None
) -> dict[HeadId, dict[str, Sample]]:
    """The tests `zero`, `mean` and `specific` of heads, each alone, on the held-out second copies.

    Args:
        runner: Measures.
        places: What each head reads.
        name: Of the places, where other roles drop the same from the same heads.
    """

    def drop(heads: Sequence[HeadId]) -> dict[HeadId, dict[str, np.ndarray]]:
        prompts = runner.held_out.prompts
        read = {one: [one(prompt) for prompt in prompts] for one in set(places.values())}
        return runner.dropped_places({head: read[places[head]] for head in heads})

    heads = tuple(places)
    dropped = drop(heads) if name is None else runner.by_head(f"dropped {name}", heads, drop)
    found = {
        head: {method: Sample(values=runner.removal(head, f"{method} second_copy")) for method in METHODS}
        for head in heads
    }
    for head, values in dropped.items():
        found[head]["specific"] = Sample(values=values["second_copy"])
    return found


def tested_on(detector: str) -> Callable[[RoleRunner, Scored, Sequence[HeadId]], Mapping[HeadId, Mapping[str, Sample]]]:
    """These tests, for each head."""
    places = places_of(detector)

    def test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
        return on_repeats(runner, dict.fromkeys(heads, places), name=detector)

    return test


def targets_of(detector: str) -> Callable[[Tokens, RoleFinding], np.ndarray]:
    """`targets` of a role that a standard detector makes."""
    places = places_of(detector)

    def targets(tokens: Tokens, finding: RoleFinding) -> np.ndarray:
        return places(tokens)

    return targets


def looking(detector: str) -> dict[str, Any]:
    """`score`, `test` and `targets` of a role that a standard detector makes."""
    return {"score": scored_by(detector), "test": tested_on(detector), "targets": targets_of(detector)}
