"""The scan: what every head attends to, from one pass over the prompts.

Each detector's targets are scored in the same forward pass, as exact probabilities at those places alone. The pass
skips the LM head and everything after the last attention; memory is O(tokens) per head. Scores are means over
prompts with intervals, each beside its chance, its control and the difference from it.

It shows what a head looks at, not what it does there: a head may attend like an induction head and copy nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.detectors import Detector, resolve
from headscope.errors import ArgumentError, NonFiniteError
from headscope.evidence.scan.result import HeadScore, Role, Scan, Timing, widest_of
from headscope.heads import HeadId
from headscope.model.attention import Attention
from headscope.model.kernels import KERNELS, Kernel
from headscope.model.load import Model, Source, load
from headscope.model.memory import in_batches
from headscope.model.precision import brought, widened, widest
from headscope.probes import Probe, repeated_tokens
from headscope.probes.probe import Tokens, check_fits, probe_of
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.stats import Interval, mean_intervals

MAX_PROMPTS = 4096
"""Where drawing for `precision` ends; the intervals reached by then are reported as they are."""

RESOLUTION = 1e-5
"""No end of an interval is nearer to its score: implementations agree on scores to this difference."""

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens in one forward pass, before memory runs out."""


def scan(
    model: Source,
    *,
    probe: Any | None = None,
    detectors: Sequence[Detector | str] | None = None,
    precision: float | None = None,
    seed: int = 0,
    kernel: Kernel | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Score every head for every role in one pass.

    score[head, role] = mean over prompts of mean over queries of the attention on the query's targets

    Args:
        model: What `headscope.load` takes, or gives.
        probe: What the model reads; by default 32 prompts, `repeated_tokens(model, seed=seed)`.
        detectors: Names or `Detector`s; by default all built-in ones.
        precision: Keep drawing prompts until the interval of every score, and of its difference from the control, is
            mean +- precision or narrower, or 4096 prompts were read; `Scan.widest` is what was reached. Stopping at a
            width makes intervals a little too narrow; the effect is small from 32 prompts up.
        seed: Of the default probe.
        kernel: Force `flash`, `tiled` or `reference`; by default the fastest that applies.
        progress: Called with (tokens read, tokens in all) after each batch.

    Returns:
        A `Scan`, best read through `.heads("induction")`, `.to_frame()` or `.save(folder)`.

    Raises:
        TokenError: a prompt does not fit the model's vocabulary or context.
        ArgumentError: precision not positive, or asked for with tokens of your own; an unknown detector or kernel.
        MemoryRanOut: memory runs out with a single prompt.
        NonFiniteError: a score is not a number.
    """
    return scanned(
        model, probe=probe, detectors=detectors, precision=precision, seed=seed, kernel=kernel, progress=progress
    )[0]


Watch = Callable[[Attention, Sequence[int]], None]
"""Sees each layer's attention in the same pass, with the number of the prompt in each of the batch's first rows."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """What a scan takes means of."""

    heads: tuple[HeadId, ...]
    """In the order of the columns."""
    scores: dict[str, Float[np.ndarray, "prompt head"]]
    """For each role its score in every prompt; NaN where the prompt has no target for it."""


def scanned(
    model: Source,
    *,
    probe: Any | None = None,
    detectors: Sequence[Detector | str] | None = None,
    precision: float | None = None,
    seed: int = 0,
    kernel: Kernel | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
    prepared: Prepared | None = None,
) -> tuple[Scan, Samples]:
    """A scan and its samples; arguments and errors are those of `scan`.

    `watch` sees each layer. `prepared`, filled here, spares the next model that reads these prompts, with the same
    detectors, looking for their targets.
    """
    model = load(model)
    chosen = resolve(detectors)
    if precision is not None and not 0 < precision < math.inf:
        raise ArgumentError(f"precision={precision}; it needs a positive number, like 0.02.")
    if kernel is not None and kernel not in KERNELS:
        raise ArgumentError(f"kernel={kernel!r} is not known; use one of {', '.join(KERNELS)}, or None.")
    read: Probe = repeated_tokens(model, seed=seed) if probe is None else probe_of(model, probe)
    if precision is not None and read.more is None:
        raise ArgumentError("precision needs a probe that can draw more prompts; your own tokens or text cannot.")
    check_fits(read, model)
    started = time.perf_counter()
    reading = _Reading(model=model, detectors=chosen, kernel=kernel, progress=progress, watch=watch, prepared=prepared)
    reading.read(read)
    while precision is not None and (further := _still_needed(reading, precision)):
        assert read.more is not None
        read = read.more(further)
        reading.read(read)
    scores, unscored = reading.scores()
    settings = dict(read.settings) | {"n_prompts": reading.n_prompts}
    if precision is not None:
        settings["precision"] = precision
    found = Scan(
        model=ModelInfo.of(model),
        probe=settings,
        roles=tuple(Role(name=one.name, needs_control=one.needs_control) for one in chosen if one.name not in unscored),
        scores=scores,
        unscored=unscored,
        provenance=Provenance.of(model, kernels=reading.kernels, seed=settings.get("seed")),
        timing=Timing(wall_s=time.perf_counter() - started, tokens=reading.tokens),
    )
    return found, reading.samples(unscored)


def prompt_scores(
    model: Model, probe: Probe, detectors: Sequence[Detector | str] | None = None
) -> tuple[Float[np.ndarray, "prompt head detector"], Float[np.ndarray, "prompt head detector"]]:
    """What a scan takes means of: scores in each prompt, and in its control, whose every prompt must have targets."""
    reading = _Reading(model=model, detectors=resolve(detectors), kernel=None, progress=None)
    reading.read(probe)
    return reading.by_prompt()


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt, its control, and every detector's targets in it: the same for every model that reads it."""

    tokens: Tokens
    control: Tokens | None
    places: np.ndarray
    """[target, 3]: detector, query, key."""
    weights: np.ndarray
    """[target]: 1 / scored queries of that detector."""
    scored: np.ndarray
    """[detector]: whether it has a target here."""


Prepared = dict[tuple[bytes, bytes | None], _Prompt]
"""Prompts by their tokens and those of their control."""


class _Row(NamedTuple):
    """One prompt's numbers."""

    scored: Bool[np.ndarray, " detector"]
    """Whether the detector has a target in it."""
    scores: Float[np.ndarray, "head detector"]
    controls: Float[np.ndarray, "head detector"] | None
    chance: Float[np.ndarray, "head detector"]


class _Reading:
    """Prompts read so far, and each head's score in each of them."""

    def __init__(
        self,
        *,
        model: Model,
        detectors: tuple[Detector, ...],
        kernel: Kernel | None,
        progress: Callable[[int, int], None] | None,
        watch: Watch | None = None,
        prepared: Prepared | None = None,
    ) -> None:
        self.model, self.detectors, self.watch = model, detectors, watch
        self._known = {} if prepared is None else prepared
        self.kernel: Kernel | None = kernel
        self.progress: Callable[[int, int], None] = progress or (lambda done, total: None)
        self.kernels: set[str] = set()
        self.tokens = 0
        self.heads: list[HeadId] = []
        self._rows: list[_Row] = []

    @property
    def n_prompts(self) -> int:
        """Prompts read."""
        return len(self._rows)

    def read(self, probe: Probe) -> None:
        """Run the model over a probe's prompts and controls and keep their scores."""
        controls = probe.controls or [None] * len(probe.prompts)
        prompts = [self._prepared(*pair) for pair in zip(probe.prompts, controls, strict=True)]
        total = self.tokens + probe.n_tokens
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index].tokens))
        rows: dict[int, Any] = {}
        for same in _same_length([(index, prompts[index]) for index in order]):
            length = len(same[0][1].tokens)
            copies = 1 if probe.controls is None else 2
            limit = BATCH_TOKENS.get(self.model.device.type, BATCH_TOKENS["cpu"])
            size = max(1, limit // (length * copies))
            for batch, result in in_batches(same, size, self._run):
                rows.update(zip([index for index, _ in batch], result, strict=True))
                self.tokens += length * copies * len(batch)
                self.progress(self.tokens, total)
        self._rows.extend(rows[index] for index in range(len(prompts)))

    def _prepared(self, tokens: Tokens, control: Tokens | None) -> _Prompt:
        name = tokens.tobytes(), None if control is None else control.tobytes()
        if name not in self._known:
            self._known[name] = self._located(tokens, control)
        return self._known[name]

    def _located(self, tokens: Tokens, control: Tokens | None) -> _Prompt:
        places, weights, scored = list[np.ndarray](), list[np.ndarray](), list[bool]()
        for index, detector in enumerate(self.detectors):
            targets = detector.targets(tokens)
            n = len(targets.query)
            places.append(np.stack([np.full(n, index), targets.query, targets.key], axis=1))
            weights.append(np.full(n, 1 / max(1, len(np.unique(targets.query)))))
            scored.append(n > 0)
        return _Prompt(tokens, control, np.concatenate(places), np.concatenate(weights), np.asarray(scored))

    def _run(self, batch: Sequence[tuple[int, _Prompt]]) -> list[_Row]:
        """Scores, control scores and chance of every head in each of these prompts of one length."""
        index, prompts = [number for number, _ in batch], [prompt for _, prompt in batch]
        device, n_detectors, n_prompts = self.model.device, len(self.detectors), len(prompts)
        rows = [prompt.tokens for prompt in prompts]
        with_control = prompts[0].control is not None
        if with_control:
            rows += [prompt.control for prompt in prompts if prompt.control is not None]
        tokens = torch.from_numpy(np.stack(rows)).to(device)
        targets = _Targets(prompts, n_detectors, copies=2 if with_control else 1, length=tokens.shape[1])
        # Room for all results is taken before the pass: a small array that outlives its layer would sit in the middle
        # of a freed block and keep the next large tensor from fitting there.
        found = np.empty((self.model.route.calls, self.model.n_heads, targets.n_groups))
        by_chance = np.empty((self.model.route.calls, self.model.n_heads, targets.n_prompt_groups))
        used = np.zeros((self.model.route.calls, self.model.n_heads), dtype=bool)
        calls: list[tuple[int, int, int]] = []

        def visit(attention: Attention) -> None:
            self.kernels.add(attention.kernel)
            at, n_heads = len(calls), attention.n_heads
            found[at, :n_heads] = targets.score(attention).T
            by_chance[at, :n_heads] = targets.chance(attention)
            used[at, :n_heads] = True
            if self.watch is not None:
                self.watch(attention, index)
            calls.append((attention.layer, attention.call, n_heads))

        self.model.run(tokens, visit, kernel=self.kernel, stop_at_last=True)
        heads = [HeadId(layer, head, call) for layer, call, n_heads in calls for head in range(n_heads)]
        assert self.heads in ([], heads), "every batch shows the same heads"
        self.heads = heads
        scores = found[used].reshape(len(heads), -1, n_prompts, n_detectors)
        chance = by_chance[used].reshape(len(heads), n_prompts, n_detectors)
        return [
            _Row(prompt.scored, scores[:, 0, index], scores[:, 1, index] if with_control else None, chance[:, index])
            for index, prompt in enumerate(prompts)
        ]

    def by_prompt(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores [prompt head detector], and those of the controls."""
        controls = [row.controls for row in self._rows if row.controls is not None]
        return np.stack([row.scores for row in self._rows]), np.stack(controls)

    def samples(self, unscored: Container[str]) -> Samples:
        """Scores in every prompt, of the roles that have any."""
        scored = np.stack([row.scored for row in self._rows])
        values = np.where(scored[:, None], np.stack([row.scores for row in self._rows]).clip(max=1.0), np.nan)
        roles = {one.name: values[:, :, i] for i, one in enumerate(self.detectors) if one.name not in unscored}
        return Samples(heads=tuple(self.heads), scores=roles)

    def scores(self) -> tuple[tuple[HeadScore, ...], dict[str, str]]:
        """One score per head and role that has targets in some prompt, and why the other roles have none."""
        made: list[HeadScore] = []
        unscored: dict[str, str] = {}
        for index, detector in enumerate(self.detectors):
            rows = [row for row in self._rows if row.scored[index]]
            if not rows:
                unscored[detector.name] = "no prompt has a target for it" + (
                    ": no token repeats" if detector.needs_control else ""
                )
                continue
            values = np.stack([row.scores[:, index] for row in rows])
            by_chance = np.mean([row.chance[:, index] for row in rows], axis=0)
            without = [row.controls[:, index] for row in rows if row.controls is not None]
            controls = np.stack(without) if without else None
            if not (np.isfinite(values).all() and (controls is None or np.isfinite(controls).all())):
                raise NonFiniteError(
                    f"the scores of {detector.name} hold NaN or infinity; load the model in a wider dtype."
                )
            values = values.clip(max=1.0)  # rounding may carry a sum of probabilities past 1
            controls = None if controls is None else controls.clip(max=1.0)
            control = None if controls is None else controls.mean(axis=0)
            mean, ends = mean_intervals(values)
            gain, gain_ends = mean_intervals(values - controls) if controls is not None else (None, None)
            for place, head in enumerate(self.heads):
                selectivity = None
                if gain is not None:
                    selectivity = Estimate(mean=float(gain[place]), ci95=_bounds(gain, gain_ends, place, -1.0))
                made.append(
                    HeadScore(
                        head=head,
                        detector=detector.name,
                        mean=float(mean[place]),
                        ci95=_bounds(mean, ends, place, 0.0),
                        chance=float(by_chance[place]),
                        control=None if control is None else float(control[place]),
                        selectivity=selectivity,
                        n_prompts=len(rows),
                    )
                )
        order = {detector.name: index for index, detector in enumerate(self.detectors)}
        made.sort(key=lambda score: (score.head, order[score.detector]))
        return tuple(made), unscored


def _bounds(mean: np.ndarray, ends: Interval | None, place: int, floor: float) -> tuple[float, float] | None:
    """An interval, clipped to the range of a score."""
    if ends is None:
        return None
    low, high = min(ends[0][place], mean[place] - RESOLUTION), max(ends[1][place], mean[place] + RESOLUTION)
    return max(floor, float(low)), min(1.0, float(high))


def _still_needed(reading: _Reading, precision: float) -> int:
    """How many further prompts the widest interval asks for: its width shrinks as 1 / sqrt(prompts)."""
    scores, _ = reading.scores()
    if not scores:
        return 0
    widest, have = widest_of(scores), reading.n_prompts
    if widest is None:
        widest = 1.0
    if widest <= precision:
        return 0
    wanted = max(have + 4, math.ceil(have * min(widest / precision, MAX_PROMPTS) ** 2))
    return max(0, min(wanted, 4 * have + 4, MAX_PROMPTS) - have)


def _same_length(prompts: list[tuple[int, _Prompt]]) -> Iterator[list[tuple[int, _Prompt]]]:
    """Runs of prompts that share one length, so that a batch needs no padding."""
    start = 0
    for end in range(1, len(prompts) + 1):
        if end == len(prompts) or len(prompts[end][1].tokens) != len(prompts[start][1].tokens):
            yield prompts[start:end]
            start = end


class _Targets:
    """All targets of a batch, each place once."""

    def __init__(self, prompts: list[_Prompt], n_detectors: int, *, copies: int, length: int) -> None:
        n_prompts = len(prompts)
        index = np.repeat(np.arange(n_prompts), [len(prompt.places) for prompt in prompts])
        places = np.concatenate([prompt.places for prompt in prompts])
        weights = np.concatenate([prompt.weights for prompt in prompts])
        row = np.concatenate([index + copy * n_prompts for copy in range(copies)])
        detector, query, key = (np.tile(column, copies) for column in places.T)
        codes, which = np.unique((row * length + query) * length + key, return_inverse=True)

        self.n_groups, self.n_prompt_groups = copies * n_prompts * n_detectors, n_prompts * n_detectors
        self._places = codes // length**2, codes // length % length, codes % length
        self._sums = which, row * n_detectors + detector, np.tile(weights, copies)
        self._held: dict[torch.device, tuple[Tensor, ...]] = {}
        self._chance: tuple[Any, np.ndarray] | None = None

    def _on(self, device: torch.device) -> tuple[Tensor, ...]:
        """Row, query, key; which place, group, weight: where a layer runs, which need not be where the tokens are."""
        if device not in self._held:
            self._held[device] = tuple(
                brought(torch.from_numpy(np.ascontiguousarray(values)), device)
                for values in (*self._places, *self._sums)
            )
        return self._held[device]

    def score(self, attention: Attention) -> np.ndarray:
        """Attention on the targets, [copy * prompt * detector, head]."""
        row, query, key, which, group, weight = self._on(attention.z.device)
        at_places = attention.probabilities(row, query, key)
        sums = at_places.new_zeros(self.n_groups, at_places.shape[1], dtype=widest(at_places.device))
        sums.index_add_(0, group, at_places[which].to(sums.dtype) * weight[:, None])
        return sums.cpu().numpy()

    def chance(self, attention: Attention) -> np.ndarray:
        """What uniform attention would score, [prompt * detector]; layers that share a mask share it."""
        bias = attention.scores.rule.bias if attention.scores is not None else None
        if self._chance is None or self._chance[0] is not bias:
            row, query, key, which, group, weight = self._on(attention.z.device)
            open_, seen = attention.allowed(row, query, key)
            uniform = widened(open_ / seen.clamp(min=1))[which] * weight
            sums = uniform.new_zeros(self.n_groups).index_add_(0, group, uniform)
            self._chance = (bias, sums[: self.n_prompt_groups].cpu().numpy())
        return self._chance[1]
