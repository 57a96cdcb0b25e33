"""The atlas of a model: every head, every role that is known, each with its control and its causal tests.

    1. repeats     attention of every head on repeated tokens; what several roles share
    2. removals    every head ablated on held-out repeats, by zero and by mean: which heads matter at all
    3. each role   scored on its own prompts; the heads that have the score are tested by interventions
    4. outcomes    q-values over all heads and roles, then each role's rule (`headscope.evidence.atlas.outcome`)
    5. the rest    for a head that holds roles, the share of its effect that stays without these roles' targets

Each step's result is kept in `keep` as it is finished, so that a run that is cut off loses at most one role.

Cost: `quick` stops after the scores, a pass or two for each role. In full, step 2 dominates: for each head and method
half a pass, on average. `python -m benchmarks.atlas` counts both on GPT-2 small's shape.

It misleads where the probes do: they are random tokens, and a head may do on text what they do not ask for. A head
without a role here is not a head without a role.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headscope.errors import ArgumentError
from headscope.evidence.atlas.finding import Effect, RoleFinding
from headscope.evidence.atlas.keep import Keep
from headscope.evidence.atlas.outcome import RULE, OutcomeRule
from headscope.evidence.atlas.result import Atlas, RoleMeaning, by_reason
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.roles import named
from headscope.evidence.atlas.runner import N_PROMPTS, RoleRunner
from headscope.evidence.atlas.samples import NotAsked, Sample
from headscope.evidence.atlas.summary import judged, summaries
from headscope.evidence.known.agreement import compared
from headscope.evidence.known.lists import known_heads
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId
from headscope.model.fingerprint import fingerprint, reading
from headscope.model.load import Model, load
from headscope.records.codec import decode, encode
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.stats import equivalence_p, p_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAST_PROMPTS = 4
"""Fewer prompts leave tests without power."""
PASS_TOKENS = 4096
"""Tokens of one forward pass, in estimates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePart:
    """What one role found, before q-values: a partial result as it is kept."""

    role: str
    """Its name."""
    not_asked: str | None
    """Why it could not be asked."""
    probe: dict[str, Any]
    """How its prompts were made."""
    findings: tuple[RoleFinding, ...]
    """One for each head, in order; none where it could not be asked."""
    wall_s: float
    """Seconds that it took; of the first of a run, with what all roles share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an atlas is about to cost."""

    passes: float
    """Forward passes of 4,096 tokens, roughly."""
    wall_s: float
    """Seconds here, from the time of a short pass."""
    roles: int
    """Roles that are still to be measured; those that are kept cost nothing."""


def atlas(
    model: Model | PreTrainedModel | str | Path,
    roles: Sequence[str] | str | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    n_prompts: int = N_PROMPTS,
    keep: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    planned: Callable[[Plan], None] | None = None,
) -> Atlas:
    """Ask every known role of every head.

    Args:
        model: What `headscope.load` takes, or gives.
        roles: Names of roles; by default all.
        quick: Attention and weights only. No head is ablated or patched, so no role has an outcome.
        seed: Of all prompts.
        n_prompts: Prompts of every probe, at least 4.
        keep: A folder for partial results. Called again for the same weights and settings, the atlas goes on where it
            was cut off.
        progress: Called with (what is being done, done, of), in thousandths of the estimated whole.
        planned: Called once, before the work, with what it is estimated to cost.

    Raises:
        ArgumentError: an unknown role, too few prompts, or none of the roles can be asked of this model.
        UnsupportedModel: the model has no LM head, so that no loss is defined; `quick` needs none.
        NonFiniteError: a loss or score is not a number.
    """
    model = load(model)
    chosen = named(roles)
    if n_prompts < LEAST_PROMPTS:
        raise ArgumentError(f"n_prompts={n_prompts}; an atlas needs at least {LEAST_PROMPTS} for its tests.")
    started = time.perf_counter()
    digits = fingerprint(model)
    settings = {"n_prompts": n_prompts, "seed": seed}
    kept = Keep.at(
        keep, fingerprint=digits, version=version("headscope"), dtype=str(model.dtype), **reading(model), **settings
    )
    parts: dict[str, RolePart] = {}
    for role in chosen:
        part = _kept(kept, role, model, quick)
        if part is not None:
            parts[role.name] = part
    missing = [role for role in chosen if role.name not in parts]
    plan = _plan(model, missing, quick=quick, n_prompts=n_prompts)
    if planned is not None:
        planned(plan)
    report = _Progress(plan, progress)
    runner = RoleRunner(model, n_prompts=n_prompts, seed=seed, keep=kept, report=report.within)
    began = time.perf_counter()
    if missing and not quick:
        report.begin("ablating every head", _removal_passes(model, n_prompts))
        _try(lambda: runner.removals)
    for role in missing:
        report.begin(role.name, role.score_passes + (0.0 if quick else role.test_passes * role.tested))
        parts[role.name] = _measured(role, runner, quick=quick, started=began)
        began = time.perf_counter()
        kept.write(_job(role, quick), encode(parts[role.name]))
    asked = [role for role in chosen if parts[role.name].not_asked is None]
    if not asked:
        reasons = by_reason({name: part.not_asked or "" for name, part in parts.items()})
        said = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
        raise ArgumentError(f"no role can be asked of {model.id} ({said}); name other roles or another model.")
    findings = judged([one for role in asked for one in parts[role.name].findings], {one.name: one for one in asked})
    report.begin("summing up", 0.0)
    heads = summaries(runner, findings, asked, quick=quick)
    report.end()
    info = ModelInfo.of(model)
    not_asked = {name: part.not_asked for name, part in parts.items() if part.not_asked is not None}
    return Atlas(
        model=info,
        fingerprint=digits,
        quick=quick,
        roles=tuple(_meaning(role, parts[role.name].probe) for role in asked),
        not_asked=not_asked,
        heads=heads,
        findings=findings,
        rule=RULE,
        settings=settings,
        provenance=Provenance.of(model, kernels=model.check.kernels, seed=seed),
        timing=Timing(
            wall_s=max(time.perf_counter() - started, sum(part.wall_s for part in parts.values())),
            tokens=round(_passes(model, chosen, quick=quick, n_prompts=n_prompts) * PASS_TOKENS),
        ),
        known=compared(known_heads(info), findings, not_asked),
    )


def _job(role: Role, quick: bool) -> str:
    return f"role-{role.name}" + ("-quick" if quick else "")


def _kept(kept: Keep, role: Role, model: Model, quick: bool) -> RolePart | None:
    """What was found for a role before; None where nothing is kept, or it is damaged or of another role or model."""
    document = kept.document(_job(role, quick))
    if document is None:
        return None
    try:
        part = decode(RolePart, document)
    except ArgumentError:
        return None
    heads = [one.head for one in part.findings]
    whole = heads == ([] if part.not_asked is not None else list(model.heads))
    return part if whole and {part.role, *(one.role for one in part.findings)} == {role.name} else None


def _try(read: Callable[[], Any]) -> None:
    """Read what all roles share, if it can be read at all; roles that need it say so themselves."""
    try:
        read()
    except NotAsked:
        return


def _measured(role: Role, runner: RoleRunner, *, quick: bool, started: float) -> RolePart:
    try:
        if quick and role.score_intervenes:
            raise NotAsked("its score takes interventions, which a quick atlas does not make")
        scored = role.score(runner)
        has = candidates(role, scored)
        tests: Mapping[HeadId, Mapping[str, Sample]] = {}
        if not quick and role.test is not None:
            order = [int(one) for one in np.argsort(-scored.score.mean(0), kind="stable")]
            best = [scored.heads[one] for one in order if has[one]][: role.tested]
            tests = role.test(runner, scored, best) if best else {}
    except NotAsked as why:
        return RolePart(role=role.name, not_asked=str(why), probe={}, findings=(), wall_s=time.perf_counter() - started)
    findings = tuple(
        _finding(role, scored, at, bool(has[at]), tests.get(head, {})) for at, head in enumerate(scored.heads)
    )
    return RolePart(
        role=role.name,
        not_asked=None,
        probe=scored.probe,
        findings=findings,
        wall_s=time.perf_counter() - started,
    )


def candidates(role: Role, scored: Scored, rule: OutcomeRule = RULE) -> np.ndarray:
    """[head] whether a head has the score: at least `least`, and enough of it lost on the control."""
    if scored.has_score is not None:
        return scored.has_score
    mean = scored.score.mean(0)
    has = mean >= role.least
    if scored.control is not None:
        has &= mean - scored.control.mean(0) >= rule.lost_on_control * mean
    return has


def _finding(role: Role, scored: Scored, at: int, has: bool, tests: Mapping[str, Sample]) -> RoleFinding:
    score = scored.score[:, at]
    control = None if scored.control is None else scored.control[:, at]
    gain = score - (scored.chance[at] if control is None else control)
    return RoleFinding(
        head=scored.heads[at],
        role=role.name,
        score=Estimate.of(score),
        chance=float(scored.chance[at]),
        control=None if control is None else float(control.mean()),
        selectivity=None if control is None else Estimate.of(gain),
        p_score=float(p_values(gain)) if gain.mean() > 0 else 1.0,
        by_score=not scored.always,
        measures={name: float(values[:, at].mean()) for name, values in scored.measures.items()},
        has_score=has,
        tests={name: _test(sample) for name, sample in tests.items()},
        variant=scored.variants.get(scored.heads[at]),
    )


def _test(sample: Sample) -> Effect:
    within = sample.within_nats
    p = p_values(sample.values) if within is None else equivalence_p(sample.values, within)
    return Effect(estimate=Estimate.of(sample.values), p_value=float(p), within_nats=within)


def _meaning(role: Role, probe: dict[str, Any]) -> RoleMeaning:
    return RoleMeaning(
        name=role.name,
        label=role.label or role.name.replace("_", " "),
        letter=role.letter,
        colour=role.colour,
        order=role.order,
        sentence=role.sentence,
        look_alike=role.look_alike,
        least=role.least,
        probe=probe,
    )


# ---- what it will cost


def _removal_passes(model: Model, n_prompts: int) -> float:
    """Both methods, half the layers for each head, about 140 tokens a prompt."""
    return sum(model.check.heads.values()) * n_prompts * 140 / PASS_TOKENS


def _passes(model: Model, roles: Sequence[Role], *, quick: bool, n_prompts: int) -> float:
    share = n_prompts / N_PROMPTS
    passes = sum(role.score_passes + (0.0 if quick else role.test_passes * role.tested) for role in roles) * share
    return passes + (0.0 if quick or not roles else _removal_passes(model, n_prompts))


def _plan(model: Model, missing: Sequence[Role], *, quick: bool, n_prompts: int) -> Plan:
    passes = _passes(model, missing, quick=quick, n_prompts=n_prompts)
    return Plan(passes=passes, wall_s=passes * _pass_s(model) if missing else 0.0, roles=len(missing))


def _pass_s(model: Model) -> float:
    """Seconds of a forward pass of 4,096 tokens, from one of a few hundred."""
    length = min(64, model.max_tokens or 64)
    tokens = torch.randint(model.n_embeddings, (4, length), generator=torch.Generator().manual_seed(0))
    started = time.perf_counter()
    model.run(tokens.to(model.device), lambda attention: None)
    return (time.perf_counter() - started) * PASS_TOKENS / tokens.numel()


class _Progress:
    """Progress over all steps, each as long as its estimate."""

    def __init__(self, plan: Plan, progress: Callable[[str, int, int], None] | None) -> None:
        self._total = max(plan.passes, 1e-9)
        self._tell: Callable[[str, int, int], None] = progress or (lambda what, done, total: None)
        self._what, self._before, self._step = "reading", 0.0, 0.0

    def begin(self, what: str, passes: float) -> None:
        self._before = min(self._total, self._before + self._step)
        self._what, self._step = what, passes
        self.within(what, 0, 1)

    def within(self, what: str, done: int, of: int) -> None:
        at = self._before + self._step * done / max(1, of)
        self._tell(self._what, min(999, int(1000 * at / self._total)), 1000)

    def end(self) -> None:
        self._tell("done", 1000, 1000)
