"""What a search finds: the score of the behaviour, single heads, a set of heads, and their controls.

For a pair, d is the log probability of the claimed answer minus that of the true one (`headscope.probes.pairs`):

    effect           d(false claim) - d(true claim), so that only what is claimed differs; where no prompt has a
                     true claim, against the neutral prompt
    removed[heads]   effect - effect without the heads (mean ablation); positive: they carry it
    patched[heads]   d(false claim) - d(false claim with their z as it is for the true one)
    share            mean of removed / mean of the effect, in the same pairs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from headscope.heads import HeadId
from headscope.records.common import Estimate

DrawKind = Literal["random", "same layers", "same size"]
"""Control sets: any heads, heads of the same layers, heads whose output weights are of about the same size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How strong the behaviour is in some pairs, before any head is named."""

    n_pairs: int
    """How many."""
    n_known: int
    """In how many the model prefers the true answer where nothing is claimed; without neutral prompts, where the true
    answer is claimed."""
    claimed_minus_true: Estimate
    """d where the false answer is claimed, in nats; positive: it prefers the claimed one."""
    claim_minus_neutral: Estimate | None
    """d there minus d where nothing is claimed; None where there are no neutral prompts."""
    claim_minus_twin: Estimate | None
    """d there minus d where the true answer is claimed; None where there are no prompts with a true claim."""
    flips: Estimate | None
    """Share of the known answers that the claim turns; None where none is known."""
    neutral_accuracy: Estimate
    """Share of pairs that are known; by chance 0.5. Without neutral prompts, where the true answer is claimed."""

    @property
    def effect(self) -> Estimate:
        """What the false claim does to d, against the true one if there is one."""
        found = self.claim_minus_twin or self.claim_minus_neutral
        assert found is not None, "a pair has a neutral prompt or a twin"
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One pair, and how the model answers it."""

    id: str
    """Which."""
    topic: str
    """What it is about."""
    form: str
    """How it is put."""
    verbatim: bool
    """Whether the answer is in the prompt."""
    prompt: str
    """The prompt with the false claim."""
    answer: str
    """What is claimed."""
    other: str
    """What is true."""
    differences: dict[str, float]
    """d for each kind of prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFinding:
    """One head that passed the triage, on held-out pairs."""

    head: HeadId
    """Which."""
    triage: dict[str, float]
    """By gradient, on other pairs: what patching it from the neutral prompt, and from the twin, would remove."""
    removed: Estimate
    """What its ablation removes of the effect."""
    q_value: float
    """Significance of that, Benjamini-Hochberg's."""
    patched: Estimate
    """What patching it removes."""
    patched_q_value: float
    """Significance of that."""
    share: float | None
    """Removed as a share of the effect; None where there is no effect."""
    attention: Estimate
    """From the answer's position to the words of the claim."""
    direct: Estimate | None
    """Direct logit attribution: its push towards the claimed answer, as a share of all heads' pushes either way; None
    where weights cannot be assigned to heads."""
    induction: float | None
    """Its induction score on repeated random tokens; None where they do not fit the model."""
    carries: bool
    """Whether it carries some of the effect by itself, by the rule."""
    named: bool
    """Whether it is one of the set, and the set carries the effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFinding:
    """Heads chosen greedily on the search pairs, all taken out at once on held-out pairs."""

    heads: tuple[HeadId, ...]
    """Which, in the order they were chosen."""
    removed: Estimate
    """What their ablation removes of the effect."""
    q_value: float
    """Significance of that."""
    patched: Estimate
    """What patching them removes."""
    patched_q_value: float
    """Significance of that."""
    share: float | None
    """Removed as a share of the effect; None where there is no effect."""
    neutral_share: float | None
    """The same for the false claim against no claim; None where there are no neutral prompts."""
    paraphrase_removed: Estimate | None
    """In the pairs whose answer does not appear in the prompt; None where there are too few."""
    paraphrase_share: float | None
    """As a share of the effect there."""
    flips_before: Estimate | None
    """Share of known answers that the claim turns."""
    flips_after: Estimate | None
    """The same without the heads."""
    accuracy_before: Estimate | None
    """Share of answers that are right where nothing is claimed; None where there are no neutral prompts."""
    accuracy_after: Estimate | None
    """The same without the heads."""
    text_loss_nats: Estimate
    """What their ablation does to the loss on the words of the prompts without a claim."""
    carries: bool
    """Whether it carries the effect by the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnSet:
    """Other heads taken out instead of the set."""

    kind: DrawKind
    """How they were drawn."""
    heads: tuple[HeadId, ...]
    """Which."""
    removed: Estimate
    """What that removes of the effect."""
    flips: Estimate | None
    """Share of known answers that the claim still turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Induction:
    """Are they merely copying? The model's induction heads, found on repeated random tokens."""

    heads: tuple[HeadId, ...]
    """All of them."""
    common: tuple[HeadId, ...]
    """Those among the named heads."""
    p_value: float
    """Probability of so many in common, or more, if the named heads were drawn at random (hypergeometric)."""
    patched: Estimate | None
    """What patching them removes of the effect, where the answer can be copied; None where there are no induction
    heads, no others, or too few such pairs."""
    share: float | None
    """As a share of the effect there."""
    others_share: float | None
    """The same for as many other heads, mean over draws; None where there are no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """The set tried on another contrast, whose pairs chose nothing."""

    name: str
    """Which contrast."""
    score: Score
    """How strong the behaviour is there."""
    removed: Estimate | None
    """What the set's ablation removes; None where there is no set."""
    share: float | None
    """As a share of the effect there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BehaviorControls:
    """The controls of the findings."""

    draws: tuple[DrawnSet, ...]
    """Random sets of the size of the set, those of a kind all different; empty where there is no set."""
    set_removed: Estimate | None
    """What the set removes in the pairs in which they were tried, some of the held-out ones; None without draws."""
    induction: Induction | None
    """Overlap with the induction heads; None where repeated tokens do not fit the model."""
    others: tuple[Other, ...]
    """Other contrasts."""
    search_pairs: int
    """Pairs that chose heads."""
    held_out_pairs: int
    """Pairs that tested them; none chose any."""
    tests: int
    """Comparisons that the q-values account for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What it took, in prompts read once; a backward pass counts as two."""

    forwards: int
    """Prompts read, whole or from a later layer on."""
    exhaustive: int
    """What ablating every head in every prompt of every pair would take."""
    wall_s: float
    """Seconds."""
