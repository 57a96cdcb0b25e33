"""What changed between models: every head's score for every role, side by side.

    1. probe      the same prompts for all models that share a vocabulary, so that differences are paired by prompt;
                  for another vocabulary prompts of its own, made alike, and differences between means
    2. scan       every model, with rows of every head's pattern kept from the same pass
    3. match      which head is which: by pattern (`headscope.evidence.compare.matching`), then by number
    4. changes    for each head and role the difference to its counterpart, with its interval, and q over all of them
    5. further    verdicts (`verify`), circuits (`circuit`), roles of the atlas (`atlas`) and the swap test (`swap`),
                  where they are asked for

    difference  second model minus first: mean over prompts, of paired differences where both read the same
    changed     q <= 0.05 (Benjamini-Hochberg, over all heads and roles) and |difference| >= 0.02

A head's counterpart is the head of most agreement, where patterns agree by at least 0.5 and beyond shuffled ones
(q <= 0.05). A head that agrees with none keeps its number, in a layer whose other heads keep theirs; in one whose heads
changed places it is left without, unless one head of the layer is left on either side.

Cost: a scan of each model, and rows of patterns: under a tenth more. All models are in memory at once.

It misleads as attention does: a head may attend as before and write something else, which `verify` sees and a scan does
not. And a change may follow from one in an earlier layer, which changes what later heads read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import torch

from headscope.errors import ArgumentError
from headscope.evidence.atlas.measure import atlas as ask_atlas
from headscope.evidence.atlas.result import Atlas
from headscope.evidence.circuit.measure import trace_circuit
from headscope.evidence.circuit.result import Circuit
from headscope.evidence.compare.changes import head_changes, label_of, side_of, unlike
from headscope.evidence.compare.drawn import drawn_patterns
from headscope.evidence.compare.finding import finding
from headscope.evidence.compare.later import edge_changes, later_changes, outcome_changes, verdict_changes
from headscope.evidence.compare.matching import Agreement, Patterns, agreement, matches
from headscope.evidence.compare.result import (
    RULE,
    Comparison,
    How,
    Likeness,
    Match,
    PairChange,
)
from headscope.evidence.compare.swap import refuse_other_shapes, swap_test
from headscope.evidence.compare.vocabulary import common_ids, shared_vocabulary
from headscope.evidence.scan.measure import Prepared, Samples, scanned
from headscope.evidence.scan.result import Scan, Timing
from headscope.evidence.verify.measure import judged_prompts, verified
from headscope.evidence.verify.result import Verification
from headscope.heads import HeadId
from headscope.model.load import Model, Source, load
from headscope.probes import Probe, repeated_tokens
from headscope.probes.copies import check_repeats
from headscope.probes.probe import Tokens
from headscope.probes.readable import PERIOD as READABLE
from headscope.probes.readable import readable
from headscope.probes.repeated import N_PROMPTS
from headscope.records.common import Estimate
from headscope.stats import mean_intervals, p_values, t_quantile, two_sample

FEW_BITS = (torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2)
"""Of which matrices of packed weights are made, four-bit numbers several in one."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Read:
    """One model, read."""

    label: str
    model: Model
    probe: Probe
    scan: Scan
    samples: Samples
    patterns: Patterns
    shares: str | None
    """Why it reads the first model's prompts; None where it reads its own."""
    verified: Verification | None
    traced: Circuit | None
    asked: Atlas | None


def compare(
    a: Source,
    b: Source,
    *more: Source,
    verify: bool = False,
    circuit: bool = False,
    atlas: bool = False,
    swap: bool = False,
    probe: Probe | None = None,
    n_prompts: int = N_PROMPTS,
    period: int | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """What changed from model a to model b, and to further ones.

    Args:
        a: What `headscope.load` takes, or gives. The others are compared with it.
        b: Another model or checkpoint.
        more: Further ones.
        verify: Verify every model too, and compare verdicts.
        circuit: Trace every model's circuit too, and compare its paths; this verifies as well.
        atlas: Ask every head of every model for all roles too, and compare what they hold. Minutes for each model.
        swap: Put heads of one model into the other: which carry the difference in loss?
        probe: What all models read; by default repeated random tokens.
        n_prompts: Of the default probe.
        period: Of the default probe; by default 50, or the longest that fits every model that reads the same prompts.
        seed: Of the default probe.
        progress: Called with (what is being done, done, of).

    Returns:
        A `Comparison`, best read through `.finding`, `.changed`, `.pairs[0]["L1H3"]` or `.to_frame()`.

    Raises:
        ArgumentError: more than 26 models; for `verify`, a probe that cannot draw more prompts; for `swap`, models of
            other vocabularies or other shapes.
        ShapeError: for `verify`, prompts that are too short.
        TokenError: a prompt of `probe` does not fit a model's vocabulary or context; for `swap`, one without a
            repetition.
        NonFiniteError: a score is not a number.
    """
    if len(more) > 24:
        raise ArgumentError(f"{len(more) + 2} models were given; compare takes 2 to 26: use a sweep for more.")
    started = time.perf_counter()
    models = [load(one) for one in (a, b, *more)]

    def drawn(model: Model, token_ids: list[int] | None = None, period: int | None = period) -> Probe:
        return repeated_tokens(model, n_prompts=n_prompts, period=period, token_ids=token_ids, seed=seed)

    probes, shared = _prompts(models, probe, drawn, period)
    for model, own, why in zip(models, probes, shared, strict=True):
        if verify or circuit:
            judged_prompts(model, own, seed)
        if swap:
            check_repeats(own.prompts)
            refuse_other_shapes(models[0], model, paired=why is not None)

    @cache
    def shown() -> Tokens:
        """The prompt on which patterns are drawn."""
        if probe is not None:
            return probe.prompts[0]
        short = min(READABLE, probes[0].settings["period"])
        readers = [one for one, why in zip(models, shared, strict=True) if why]
        return readable(models[0], token_ids=common_ids(readers), period=short, seed=seed).prompts[0]

    prepared = Prepared()
    read = [
        _measured(
            model, own, why, label_of(index), prepared,
            verify=verify or circuit, circuit=circuit, atlas=atlas, seed=seed, progress=progress,
        )
        for index, (model, own, why) in enumerate(zip(models, probes, shared, strict=True))
    ]  # fmt: skip
    alike = {
        (one.label, two.label): agreement(one.patterns, two.patterns)
        for one, two in combinations(read, 2)
        if one.shares and two.shares
    }
    nearest = [
        Likeness(a=one.label, b=two.label, similarity=_similarity(alike[one.label, two.label], one, two))
        for one, two in combinations(read, 2)
        if (one.label, two.label) in alike
    ]
    return Comparison(
        sides=tuple(side_of(one.label, one.scan) for one in read),
        pairs=tuple(
            _pair(read[0], one, alike.get((read[0].label, one.label)), shown if one.shares else None, swap, seed)
            for one in read[1:]
        ),
        nearest=tuple(sorted(nearest, key=lambda one: (-round(one.similarity, 6), one.a, one.b))),
        rule=RULE,
        timing=Timing(wall_s=time.perf_counter() - started, tokens=sum(one.scan.timing.tokens for one in read)),
    )


# ---- one model


def _prompts(
    models: Sequence[Model], given: Probe | None, drawn: Callable[..., Probe], period: int | None
) -> tuple[list[Probe], list[str | None]]:
    """What each model reads, and why it reads the same as the first; None where it does not.

    Raises:
        ArgumentError: a single prompt was given.
    """
    shared = [shared_vocabulary(models[0], one) for one in models]
    if given is not None:
        common, shared = given, list[str | None](["the prompts were given"] * len(models))
    else:
        common = _fitting([one for one, why in zip(models, shared, strict=True) if why], drawn, period)
    if len(common.prompts) < 2:
        raise ArgumentError("1 prompt was given; differences need intervals, and an interval at least 2 prompts.")
    return [common if why else drawn(model) for model, why in zip(models, shared, strict=True)], shared


def _fitting(models: Sequence[Model], drawn: Callable[..., Probe], period: int | None) -> Probe:
    """Prompts that all of these can read: of the period asked for, or of the shortest that any of them would get."""
    ids = common_ids(models)
    first, *others = (drawn(one, ids) for one in (models if period is None else models[:1]))
    shortest = min((one.settings["period"] for one in others), default=first.settings["period"])
    return first if first.settings["period"] <= shortest else drawn(models[0], ids, shortest)


def _measured(
    model: Model,
    probe: Probe,
    shares: str | None,
    label: str,
    prepared: Prepared,
    *,
    verify: bool,
    circuit: bool,
    atlas: bool,
    seed: int,
    progress: Callable[[str, int, int], None] | None,
) -> _Read:
    """All that is measured of one model alone; `prepared` is what models that read the same prompts share."""
    patterns, verification = Patterns(), None

    def report(what: str, done: int, total: int) -> None:
        if progress is not None:
            progress(f"{what} {label}", done, total)

    if verify:
        verification, scan, samples = verified(
            model,
            probe=probe,
            seed=seed,
            progress=report,
            watch=patterns.watch,
            prepared=prepared,
        )
    else:
        scan, samples = scanned(
            model,
            probe=probe,
            watch=patterns.watch,
            prepared=prepared,
            progress=lambda done, total: report("scanning", done, total),
        )
    return _Read(
        label=label,
        model=model,
        probe=probe,
        scan=scan,
        samples=samples,
        patterns=patterns,
        shares=shares,
        verified=verification,
        traced=trace_circuit(model, verification=verification, seed=seed, progress=progress) if circuit else None,
        asked=ask_atlas(model, seed=seed, progress=progress) if atlas else None,
    )


# ---- two models


def _similarity(found: Agreement, one: _Read, two: _Read) -> float:
    """Mean similarity of matched heads."""
    heads, others = one.patterns.heads, two.patterns.heads
    matched = matches(found, heads, others)
    return float(np.mean([found.similarity[heads.index(a), others.index(b)] for a, b in matched.items()]))


def _pair(
    one: _Read, two: _Read, found: Agreement | None, shown: Callable[[], Tokens] | None, swap: bool, seed: int
) -> PairChange:
    heads, others = list(one.samples.heads), list(two.samples.heads)
    counterparts = _counterparts(heads, others, found)
    roles = [role for role in one.samples.scores if role in two.samples.scores]
    found_differences, bound = _differences(one.samples, two.samples, counterparts, roles, paired=found is not None)
    match = None
    if found is not None:
        chosen = [others.index(counterparts[head][0]) if head in counterparts else 0 for head in heads]
        alike = found.q_values(np.asarray(chosen))
        match = {
            head: _match(found, alike, heads.index(head), others.index(counterparts[head][0])) for head in counterparts
        }
    changes = head_changes(one.scan, two.scan, counterparts, found_differences, match)
    taken = {other for other, _ in counterparts.values()}
    differ = _unlike(one, two)
    unmatched = tuple(other for other in others if other not in taken)
    names = {head: other for head, (other, _) in counterparts.items()}
    verdicts = edges = outcomes = swapped = None
    if one.verified is not None and two.verified is not None:
        verdicts = verdict_changes(one.verified, two.verified, names)
    if one.traced is not None and two.traced is not None:
        edges = edge_changes(one.traced, two.traced, names)
    if one.asked is not None and two.asked is not None:
        outcomes = outcome_changes(one.asked, two.asked, names)
    if swap:
        swapped = swap_test(one.model, two.model, one.probe.prompts, heads, names=names, seed=seed)
    return PairChange(
        a=one.label,
        b=two.label,
        paired=found is not None,
        why=two.shares or "another vocabulary or start token: each model read prompts of its own",
        differ=differ,
        similarity=None if found is None else _similarity(found, one, two),
        heads=tuple(changes),
        unmatched=unmatched,
        bound=bound,
        finding=finding(
            (one.label, two.label),
            changes,
            unmatched,
            differ,
            bound=bound,
            also=later_changes(verdicts, edges, outcomes),
            swap=swapped,
        ),
        verdicts=verdicts,
        edges=edges,
        swap=swapped,
        outcomes=outcomes,
        patterns=None if shown is None else drawn_patterns(one.model, two.model, shown, changes),
    )


def _differences(
    first: Samples,
    second: Samples,
    counterparts: Mapping[HeadId, tuple[HeadId, How]],
    roles: Sequence[str],
    *,
    paired: bool,
) -> tuple[dict[tuple[HeadId, str], tuple[Estimate, float]], float | None]:
    """Second minus first and its p for each head and role, and the bound of all; see `PairChange.bound`."""
    at, to = ({head: index for index, head in enumerate(one.heads)} for one in (first, second))
    ours, theirs = [at[head] for head in counterparts], [to[other] for other, _ in counterparts.values()]
    estimates: dict[tuple[HeadId, str], tuple[Estimate, float]] = {}
    ends: list[float] = []
    n_tests = len(roles) * len(counterparts)
    for role in roles if counterparts else ():
        x, y = first.scores[role][:, ours], second.scores[role][:, theirs]
        if not paired:
            x, y = (one[np.isfinite(one).all(1)] for one in (x, y))
            for index, head in enumerate(counterparts):
                mean, ci95, p = two_sample(x[:, index], y[:, index])
                estimates[head, role] = Estimate(mean=mean, ci95=ci95), p
            continue
        apart = (y - x)[np.isfinite(x).all(1) & np.isfinite(y).all(1)]
        mean, interval = mean_intervals(apart)
        low, high = (None, None) if interval is None else interval
        for index, (head, value) in enumerate(zip(counterparts, p_values(apart), strict=True)):
            ci95 = None if low is None or high is None else (float(low[index]), float(high[index]))
            estimates[head, role] = Estimate(mean=float(mean[index]), ci95=ci95), float(value)
        if len(apart) > 1:
            t = t_quantile(len(apart) - 1, error=0.05 / n_tests)
            ends.append(float((np.abs(mean) + t * apart.std(axis=0, ddof=1) / np.sqrt(len(apart))).max()))
    return estimates, min(1.0, max(ends)) if ends else None


def _match(found: Agreement, q: np.ndarray, head: int, other: int) -> Match:
    rest = np.delete(found.agreement[head], other)
    return Match(
        similarity=float(found.similarity[head, other]),
        agreement=float(found.agreement[head, other]),
        q_value=float(q[head]),
        next_best=float(rest.max()) if len(rest) else None,
    )


def _counterparts(
    heads: Sequence[HeadId], others: Sequence[HeadId], found: Agreement | None
) -> dict[HeadId, tuple[HeadId, How]]:
    """Each head's counterpart and how it was found."""
    if found is None:
        return {head: (head, "number") for head in heads if head in others} if list(heads) == list(others) else {}
    at = {head: index for index, head in enumerate(heads)}
    to = {other: index for index, other in enumerate(others)}
    matched = matches(found, heads, others)
    order = np.asarray([to[matched[head]] if head in matched else 0 for head in heads])
    q = found.q_values(order)
    made: dict[HeadId, tuple[HeadId, How]] = {}
    for head, other in matched.items():
        sure = found.agreement[at[head], to[other]] >= RULE.agreement and q[at[head]] <= RULE.false_discovery
        if sure:
            made[head] = (other, "number" if other == head else "pattern")
    taken = {other for other, _ in made.values()}
    for layer in sorted({head.layer for head in heads}):
        here = [head for head in heads if head.layer == layer]
        there = [other for other in others if other.layer == layer]
        known = [head for head in here if head in made]
        kept = sum(made[head][0] == head for head in known)
        left = [head for head in here if head not in made]
        free = [other for other in there if other not in taken]
        if here == there and 2 * kept >= len(known):
            made |= {head: (head, "number") for head in left if head in free}
        elif len(left) == len(free) == 1 and len(here) > 1:
            made[left[0]] = (free[0], "last")
    return made


def _unlike(first: _Read, second: _Read) -> tuple[str, ...]:
    """What is known to differ beside the weights' values."""
    packing = _packing(first.model), _packing(second.model)
    kinds = [f"weights {packing[0]}, {packing[1]}"] if packing[0] != packing[1] else []
    return (*unlike(first.scan, second.scan), *kinds)


def _packing(model: Model) -> str:
    """How matrices are kept that are no plain numbers of the model's dtype, as quantising libraries keep them."""
    matrices = [one for one in (*model.module.parameters(), *model.module.buffers()) if one.ndim > 1]
    own = {type(one).__name__ for one in matrices if type(one) not in (torch.Tensor, torch.nn.Parameter)}
    few = {str(one.dtype).removeprefix("torch.") for one in matrices if one.dtype in FEW_BITS}
    return " and ".join(sorted(own | few)) or "unpacked"
