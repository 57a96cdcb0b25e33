"""What an atlas finds of one role of one head: score, tests and outcome."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headscope.heads import HeadId
from headscope.records.common import Estimate

Outcome = Literal["primary", "secondary", "correlate", "interferer", "null"]
HELD: tuple[Outcome, ...] = ("primary", "secondary", "interferer")
"""Outcomes with which a head holds a role: it does something by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One intervention on one head."""

    estimate: Estimate
    """In nats, mean over prompts; for an effect, positive: the head serves the role."""
    p_value: float
    """Two-sided for an effect; of two one-sided tests for equivalence."""
    q_value: float | None = None
    """Benjamini-Hochberg's over all heads and roles, effects and equivalences each for themselves."""
    within_nats: float | None = None
    """For a test of equivalence its bound; None for a test of an effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFinding:
    """One role of one head."""

    head: HeadId
    """Which head."""
    role: str
    """Which role."""
    score: Estimate
    """Mean over prompts."""
    chance: float
    """What a head that looks everywhere alike would score."""
    control: float | None
    """The score on the matched control; None for a role that needs none."""
    selectivity: Estimate | None
    """Score minus control, paired by prompt."""
    p_score: float
    """That the score is the control's, or chance's where there is no control."""
    by_score: bool = True
    """Whether the role asks that the score be significant; not so where the role says what a head does not do."""
    q_score: float | None = None
    """Benjamini-Hochberg's over all heads and roles."""
    measures: dict[str, float]
    """Further numbers of the role."""
    has_score: bool
    """Whether the score is what the role asks for."""
    tests: dict[str, Effect]
    """Interventions by name; empty where none was made."""
    outcome: Outcome | None = None
    """By the rule of `headscope.evidence.atlas.outcome`; None where it has the score and nothing was tried."""
    variant: str | None = None
    """Which kind of the role it is, for roles that have kinds."""
    reasons: tuple[str, ...] = ()
    """In words."""
