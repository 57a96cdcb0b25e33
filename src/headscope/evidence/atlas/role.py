"""What a role of the atlas is: how it is scored, tested and judged. `roles/__init__.py` says what a role file holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from headscope.evidence.atlas.finding import RoleFinding
from headscope.evidence.atlas.outcome import Judge, judge
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import Sample
from headscope.evidence.scan.result import THRESHOLD
from headscope.heads import HeadId
from headscope.probes.probe import Tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """Every head's score for a role."""

    heads: tuple[HeadId, ...]
    """Every head of the model, in order."""
    score: Float[np.ndarray, "prompt head"]
    """One value for each prompt."""
    chance: Float[np.ndarray, " head"]
    """What a head that looks everywhere alike would score."""
    control: Float[np.ndarray, "prompt head"] | None = None
    """The same on the matched control; None for roles that need none."""
    measures: Mapping[str, Float[np.ndarray, "prompt head"]] = field(default_factory=dict[str, np.ndarray])
    """Further numbers by name, shown beside the score."""
    has_score: np.ndarray | None = None
    """[head] whether the head has the score, for roles with a criterion of their own; by default the rule's."""
    always: bool = False
    """`has_score` holds whether or not the score is above chance: for claims about what a head does not do."""
    variants: Mapping[HeadId, str] = field(default_factory=dict[HeadId, str])
    """What else to say of a head, like `3 tokens back`."""
    probe: dict[str, Any] = field(default_factory=dict[str, Any])
    """How the prompts were made, JSON-ready."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Role:
    """A role; see `headscope.evidence.atlas.roles` for what a file of it holds."""

    name: str
    """As the command line and documents call it."""
    order: int
    """Place in legends and lists: small first."""
    letter: str
    """On maps."""
    colour: str
    """On white paper, #rrggbb."""
    label: str | None = None
    """By default the name with spaces."""
    sentence: str
    """What a head with this role does."""
    look_alike: str
    """With what it can be confused, and what excludes that."""
    least: float = THRESHOLD
    """Least score."""
    score: Callable[[RoleRunner], Scored]
    """Attention and weights only; raises `NotAsked` where the model lacks what the probe needs."""
    test: Callable[[RoleRunner, Scored, Sequence[HeadId]], Mapping[HeadId, Mapping[str, Sample]]] | None = None
    """Interventions on the heads that have the score; see `outcome` for the names that the rule knows."""
    judge: Judge = judge
    """By default the published rule."""
    targets: Callable[[Tokens, RoleFinding], np.ndarray] | None = None
    """(query, key) pairs [place, 2] that a head with this role reads on repeated tokens; None where it has none."""
    score_intervenes: bool = False
    """The score itself takes interventions, so that a quick atlas does not ask for it."""
    score_passes: float = 1.0
    """Forward passes of 4,096 tokens that scoring takes, for the estimate of time."""
    explains: bool = True
    """Whether holding it says what a head does: not so for where a head rests, or how far it reads."""
    tested: int = 12
    """Heads that are tested at most, best score first."""
    test_passes: float = 0.1
    """The same for testing one head."""
