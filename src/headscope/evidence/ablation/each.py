"""What each head alone is worth: every head's effect on the second copy's loss.

    exhaustive   each head ablated in every prompt. Exact.
    gradient     a first-order estimate for all heads, from one forward and one backward pass:
                 delta ~ sum over positions of  dloss/dz . (substitute - z).  An estimate, and labelled so: it misses
                 saturation, so a head whose work a backup takes over, or whose effect is saturated, can look worthless.
    race         the top k of exhaustive, cheaper. Every head is ablated in a few prompts, and the gradient's estimate
                 in all prompts is corrected by what it was seen to miss:

                     delta[h] = mean over all prompts of gradient[h]
                                + mean over the prompts read of (exact - gradient)[h]

                 with a t interval for the second mean, with a finite-population correction sqrt(1 - read / all),
                 widened for heads and rounds (Bonferroni). A head whose interval is wholly below the k-th
                 best lower end is out; the others go on to three times as many prompts, at last to all, where their
                 effects are exact. A head that the gradient misjudges has a wide interval and stays in the race.

                 With `negligible`, a head whose interval is below it is out as well, so that where nothing matters
                 the race ends after its first round, and its top may hold heads that were not read in all prompts.

Heads that are out keep the estimate and interval they left with. The race misleads where a head matters in very few
prompts, none of them read in the first round, and the gradient says nothing of it there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headscope.errors import ArgumentError
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId, ranking
from headscope.interventions.ablation import (
    AblatedHeads,
    Ablator,
    Intervention,
    Method,
    Queries,
    losses,
    prompts_at_once,
    same_length,
    targets_of,
)
from headscope.interventions.choices import Choices
from headscope.model.attention import Attention
from headscope.model.load import Source, load
from headscope.model.memory import in_batches
from headscope.model.precision import widened
from headscope.model.replay import Replay
from headscope.probes import Probe, repeated_tokens
from headscope.probes.copies import check_repeats
from headscope.probes.probe import Tokens, check_fits, probe_of
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import Document
from headscope.stats import t_quantile

Search = Literal["race", "exhaustive", "gradient"]
SEARCHES: tuple[Search, ...] = ("race", "exhaustive", "gradient")

N_PROMPTS = 32
"""Prompts of the default probe: the more there are, the smaller the share that the first round reads."""
FIRST_ROUND = 4
"""Prompts in which every head is ablated before any is out: the fewest whose spread says something."""
GROWTH = 3
"""Each round reads this many times the prompts of the last."""
TOP = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEffect:
    """What the second copy's loss becomes without one head."""

    head: HeadId
    """Which head."""
    delta_loss_nats: Estimate
    """Ablated minus clean, with its 95% interval over prompts. For an estimate whose race ended early the interval is
    the wider one that the race went by."""
    exact: bool
    """Ablated in every prompt. False: corrected or plain gradient."""
    n_prompts: int
    """Prompts in which the head was ablated; 0 for a plain gradient estimate."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class HeadEffects(Document):
    """Every head's effect, largest first."""

    schema: ClassVar[str] = "headscope.effects/1"

    model: ModelInfo
    """Which model."""
    search: Search
    """`race`, `exhaustive` or `gradient`."""
    top: int | None
    """How many heads the race measured exactly; None for the others."""
    confidence: float | None
    """Of all the race's intervals together; None for the others."""
    method: Method
    """`zero`, `mean` or `resample`."""
    heads: tuple[HeadEffect, ...]
    """Largest effect first. The first `top` of a race are exact, but for those that it left as negligible."""
    probe: dict[str, Any]
    """How the prompts were made."""
    corpus: dict[str, Any] | None
    """How the clean corpus was made."""
    n_ablations: int
    """(head, prompt) pairs that were ablated."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""

    def listed(self) -> Iterable[HeadId]:
        """The heads."""
        return (one.head for one in self.heads)

    def __repr__(self) -> str:
        best = ", ".join(f"{one.head} {one.delta_loss_nats.mean:+.3f}" for one in self.heads[:3])
        return f"HeadEffects({self.model.id}, {self.search}: {best}, ...)"


def ablate_each(
    model: Source,
    *,
    probe: Any | None = None,
    method: Method = "mean",
    search: Search = "race",
    top: int = TOP,
    confidence: float = 0.95,
    negligible: float | None = None,
    corpus: Any | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> HeadEffects:
    """The effect of taking out each head alone on the second copy's loss.

    Args:
        model: What `headscope.load` takes, or gives.
        probe: Prompts that repeat themselves; by default 32 of `repeated_tokens(model, seed=seed)`.
        method: `zero`, `mean` or `resample`.
        search: `race`, `exhaustive` or `gradient`.
        top: How many heads the race makes sure of.
        confidence: With which the race's top k are those of `exhaustive`.
        negligible: The race also leaves a head whose whole interval is below this many nats, with that interval. Such
            heads may be among the first `top`: they are the ones that are not `exact`.
        corpus: Clean prompts for `mean` and `resample`; see `ablate`.
        seed: Of the default probe and of what `resample` draws.
        progress: Called with (ablations done, ablations at most).

    Raises:
        ArgumentError: an unknown search or method, top below 1, confidence outside 0 to 1, or no corpus.
        TokenError: a prompt that repeats nothing, or does not fit the model.
        ShapeError: a corpus that is too short.
        UnsupportedModel: the model has no LM head, so that no loss is defined.
        NonFiniteError: a loss is not a number.
    """
    model = load(model)
    probe = repeated_tokens(model, n_prompts=N_PROMPTS, seed=seed) if probe is None else probe_of(model, probe)
    check_fits(probe, model)
    check_repeats(probe.prompts)
    ablator = Ablator.of(model, probe, method=method, corpus=corpus, seed=seed)
    found, _ = searched(
        ablator, probe, search=search, top=top, confidence=confidence, negligible=negligible, progress=progress
    )
    return found


def searched(
    ablator: Ablator,
    probe: Probe,
    *,
    search: Search,
    top: int,
    confidence: float = 0.95,
    negligible: float | None = None,
    chosen: Collection[HeadId] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[HeadEffects, list[HeadId]]:
    """Every head's effect, and the heads that may be among the first `top`, the largest effect first.

    As `ablate_each`, with an ablator that was made already, whose means may have been read already. `chosen` is for a
    search whose heads are measured again in other prompts: the heads that are measured there anyway. A race reads these
    in its first round alone, ends when at most `top` others may be among the first `top`, and leaves them inexact.
    """
    if search not in SEARCHES:
        raise ArgumentError(f"search={search!r} is not known; use one of {', '.join(SEARCHES)}.")
    if top < 1:
        raise ArgumentError(f"top={top}; it needs at least 1.")
    if not 0 < confidence < 1:
        raise ArgumentError(f"confidence={confidence}; it needs a number between 0 and 1, like 0.95.")
    started = time.perf_counter()
    queries: Queries = {"second_copy": [one.second for one in check_repeats(probe.prompts)]}
    measured = _Measurement(ablator=ablator, prompts=probe.prompts, queries=queries, progress=progress)
    if search == "gradient":
        found = measured.gradient_alone()
    elif search == "race":
        found = measured.race(top, confidence, negligible, chosen)
    else:
        found = measured.exhaustive()
    ranked = sorted(found, key=lambda one: ranking(one.delta_loss_nats.mean, one.head))
    left = [one.head for one in ranked if measured.left is None or one.head in measured.left][:top]
    effects = HeadEffects(
        model=ModelInfo.of(ablator.model),
        search=search,
        top=top if search == "race" else None,
        confidence=confidence if search == "race" else None,
        method=ablator.method,
        heads=tuple(ranked),
        probe=dict(probe.settings),
        corpus=None if ablator.corpus is None else dict(ablator.corpus.settings),
        n_ablations=measured.n_ablations,
        provenance=Provenance.of(ablator.model, kernels=ablator.model.check.kernels, seed=ablator.seed),
        timing=Timing(wall_s=time.perf_counter() - started, tokens=sum(map(len, probe.prompts))),
    )
    return effects, left


class _Measurement:
    """One search."""

    def __init__(
        self,
        *,
        ablator: Ablator,
        prompts: tuple[Tokens, ...],
        queries: Queries,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.ablator, self.prompts, self.queries = ablator, prompts, queries
        self.heads = list(ablator.model.heads)
        self.n_ablations = 0
        self.left: frozenset[HeadId] | None = None
        """Heads that a race did not rule out; None where all were read alike."""
        self._report: Callable[[int, int], None] = progress or (lambda done, total: None)

    def exhaustive(self) -> list[HeadEffect]:
        """Every head in every prompt."""
        return [self._exact(head, row) for head, row in zip(self.heads, self._ablated(self.heads), strict=True)]

    def gradient_alone(self) -> list[HeadEffect]:
        """Every head's first-order estimate."""
        estimates = gradients(self.ablator, self.prompts, self.queries["second_copy"], self.heads)
        return [
            HeadEffect(head=head, delta_loss_nats=Estimate.of_loss(row), exact=False, n_prompts=0)
            for head, row in zip(self.heads, estimates, strict=True)
        ]

    def race(
        self, top: int, confidence: float, negligible: float | None, chosen: Collection[HeadId] | None
    ) -> list[HeadEffect]:
        """The top k exactly, the rest as far as was needed to rule them out; see `searched` for `chosen`."""
        least = -math.inf if negligible is None else negligible
        n_heads, n_prompts = len(self.heads), len(self.prompts)
        rounds = _rounds(n_prompts)
        if n_heads <= top or len(rounds) == 1:
            return self.exhaustive()
        first_order = gradients(self.ablator, self.prompts, self.queries["second_copy"], self.heads)
        error = (1 - confidence) / (n_heads * (len(rounds) - 1))
        exact = np.full((n_heads, n_prompts), np.nan)
        center, half = np.empty(n_heads), np.empty(n_heads)
        running, read, bar = np.argsort(-first_order.mean(1)), 0, least
        for until in rounds:
            exact[running, read:until] = self._ablated([self.heads[int(one)] for one in running], range(read, until))
            read = until
            missed = exact[running, :read] - first_order[running, :read]
            center[running] = first_order[running].mean(1) + missed.mean(1)
            left = math.sqrt(1 - read / n_prompts)
            half[running] = left * t_quantile(read - 1, error=error) * missed.std(1, ddof=1) / math.sqrt(read)
            # Chosen heads leave after the first round, and the bar that they reached stays.
            bar = max(_kth(center[running] - half[running], top), least if chosen is None else bar)
            running = running[center[running] + half[running] >= bar]
            if chosen is not None:
                running = np.asarray([one for one in running if self.heads[one] not in chosen], dtype=np.int64)
            if len(running) <= (0 if chosen is None else top):
                break
        known = np.isfinite(exact[:, -1])
        bar = max(_kth(exact[known].mean(1), top), least)
        early = ~known & (center >= bar) if chosen is None else np.zeros(n_heads, dtype=bool)
        for one in np.flatnonzero(early):  # an interval missed: out too early
            read = int(np.isfinite(exact[one]).sum())
            exact[one, read:] = self._ablated([self.heads[one]], range(read, n_prompts))[0]
        exactly = np.flatnonzero(np.isfinite(exact[:, -1]))
        self.left = frozenset(self.heads[one] for one in (exactly if chosen is None else running))
        return [
            self._exact(head, row)
            if not np.isnan(row[-1])
            else HeadEffect(
                head=head,
                delta_loss_nats=Estimate(mean=float(mean), ci95=(float(mean - width), float(mean + width))),
                exact=False,
                n_prompts=int(np.isfinite(row).sum()),
            )
            for head, row, mean, width in zip(self.heads, exact, center, half, strict=True)
        ]

    def _ablated(self, heads: Sequence[HeadId], part: range | None = None) -> Float[np.ndarray, "head prompt"]:
        """Loss without each head minus the clean loss, in some of the prompts."""
        part = range(len(self.prompts)) if part is None else part
        worlds: list[AblatedHeads] = [frozenset(), *(frozenset([head]) for head in heads)]
        done = self.n_ablations
        total = len(self.heads) * len(self.prompts)

        def progress(pairs: int) -> None:
            nonlocal done
            done += pairs // len(worlds) * len(heads)  # the clean world is no ablation
            self._report(done, total)

        found = losses(
            self.ablator,
            self.prompts,
            self.queries,
            worlds,
            index=part,
            progress=progress,
        )["second_copy"]
        self.n_ablations += len(heads) * len(part)
        return found[1:] - found[0]

    def _exact(self, head: HeadId, row: np.ndarray) -> HeadEffect:
        return HeadEffect(head=head, delta_loss_nats=Estimate.of_loss(row), exact=True, n_prompts=len(row))


def _kth(values: np.ndarray, k: int) -> float:
    """The k-th largest; with fewer values there is none to reach."""
    return float(np.sort(values)[-k]) if len(values) >= k else -math.inf


def _rounds(n_prompts: int) -> list[int]:
    """Prompts read by the end of each round; the last reads all."""
    rounds, read = list[int](), FIRST_ROUND
    while read < n_prompts:
        rounds.append(read)
        read *= GROWTH
    return [*rounds, n_prompts]


def gradients(
    ablator: Intervention,
    prompts: Sequence[Tokens],
    places: Sequence[np.ndarray] | Choices,
    heads: Sequence[HeadId],
) -> Float[np.ndarray, "head prompt"]:
    """First-order change of each prompt's mean loss at these places, or of its choice, when one head is replaced.

    estimate[h, p] = sum over positions of  dloss_p/dz_h . (substitute_h - z_h)
    """
    asked: Queries | Choices = places if isinstance(places, Choices) else {"loss": list(places)}
    found = np.empty((len(heads), len(prompts)))
    order = {(head.layer, head.call, head.head): row for row, head in enumerate(heads)}

    def run(part: Sequence[int]) -> dict[tuple[int, int], Tensor]:
        targets = targets_of(prompts, asked, part)
        device = ablator.model.device
        replay = Replay(ablator.model, torch.from_numpy(targets.tokens).to(device))
        zeros: dict[tuple[int, int], Tensor] = {}
        steps: dict[tuple[int, int], Tensor] = {}
        substitute = ablator.substitutes(part, targets.tokens.shape[1])

        def visit(attention: Attention) -> Tensor:
            at, z = (attention.layer, attention.call), attention.z
            zero = torch.zeros_like(z, requires_grad=True)
            zeros[at] = zero
            mask = torch.ones(1, attention.n_heads, dtype=torch.bool, device=z.device)
            with torch.no_grad():
                steps[at] = ablator.edited(attention, mask, substitute(attention)) - z
            return z + zero

        logits = replay.clean(visit, places=targets.places(1).to(device), grad=True)
        slopes = torch.autograd.grad(targets.total(logits), list(zeros.values()))
        return {
            at: (widened(slope) * widened(steps[at])).sum((1, 3)).cpu() for at, slope in zip(zeros, slopes, strict=True)
        }

    for same in same_length(prompts):
        size = prompts_at_once(ablator.model, len(prompts[same[0]]))
        for part, changes in in_batches(same, size, run):
            for (layer, call), change in changes.items():
                for head in range(change.shape[1]):
                    if (layer, call, head) in order:
                        found[order[layer, call, head], list(part)] = change[:, head].numpy()
    return found
