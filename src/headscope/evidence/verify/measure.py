"""Verify: which heads does the second copy depend on, and what is each head?

    1. scan          every head's attention, on the probe's prompts; where each looks at a fixed offset
    2. candidates    heads with a stripe, and the heads that may be among the top k by their effect on the second copy's
                     loss (`every_head`), all on the probe's prompts, but for those that the search finds below the
                     rule's least effect. From here on only held-out prompts count, drawn after them.
    3. one by one    each candidate ablated: loss of the second and of the first copy, and of natural text
    4. other heads   every other head of the layer, in 4 prompts, in 8 where these leave it open: is a stripe head's
                     effect more than any head's?
    5. behind others all heads with a stripe ablated, and all but one: what one does when the others cannot. In 8
                     prompts where what it does alone decides its verdict, else in all. For a head that does
                     nothing alone or there, once more with the heads that have a part of a stripe ablated too
    6. copying       from the weights, for each head and for the set
    7. verdict       by the rule of `headscope.evidence.verify.verdict`
    8. random heads  for the set: as many others, of its layers and of the size of W_V W_O, 5 draws, in 8 prompts; in
                     all where the intervals of a draw and of the heads it is compared with meet

Cost: the search, a third or less of one pass per head and prompt, and about half a pass for each set of ablated heads
in steps 3, 5 and 8, as far as they read all prompts, and 1 for each candidate. Step 4 takes 4 or 8 prompts for each
other head of a layer that has a stripe head.

It misleads where the probe does: these are random tokens, and a head may do the same on text for other reasons.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from headscope.errors import ArgumentError, ShapeError, UnsupportedModel
from headscope.evidence import head_types
from headscope.evidence.ablation.each import N_PROMPTS, TOP, HeadEffect, Search, searched
from headscope.evidence.ablation.measure import refuse_all
from headscope.evidence.copying import Copying, TokenSpace
from headscope.evidence.offsets import LEAST_TOKENS, Offsets
from headscope.evidence.scan.measure import Prepared, Samples, Watch, scanned
from headscope.evidence.scan.result import HeadScore, Scan, Timing
from headscope.evidence.verify.behind import Behind
from headscope.evidence.verify.evidence import (
    RULE,
    Evidence,
    Restored,
    effect,
    has_partial_stripe,
    has_stripe,
)
from headscope.evidence.verify.others import matched, others_of, over_others, read_others, sizes_of
from headscope.evidence.verify.result import Controls, Draw, HeadSet, HeadVerdict, Relation, Verification
from headscope.evidence.verify.trial import FEW_PROMPTS, NaturalText, Trial
from headscope.evidence.verify.verdict import judge
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, Method
from headscope.model.attention import Attention
from headscope.model.load import Heads, Model, Source, load
from headscope.probes import repeated_tokens
from headscope.probes.probe import Probe, Tokens, check_fits, probe_of
from headscope.records.common import Estimate, ModelInfo, Provenance, apart

COMPLEMENT = 0.25
"""How much more often a set must raise the attended token to the top than its best head alone."""


def verify(
    model: Source,
    heads: Heads | None = None,
    *,
    probe: Any | None = None,
    ablation: Method = "mean",
    search: Search = "race",
    top: int = TOP,
    natural: str | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Take heads out, alone and together, compare them with controls, and call each head by what it is.

    Args:
        model: What `headscope.load` takes, or gives.
        heads: Judge these alone, without a search: names, `HeadId`s, or what `scan.heads("induction")` gives. By
            default every head.
        probe: Repeated tokens that can draw more; by default 32 prompts of `repeated_tokens(model, seed=seed)`.
        ablation: `mean`, `zero` or `resample`.
        search: How candidates are found: `race`, `exhaustive` or `gradient`.
        top: How many heads the search makes sure of.
        natural: A text on which removals are tried too.
        seed: Of the default probe, of `resample`, and of the draws.
        progress: Called with (what is being done, done, of).

    Raises:
        ArgumentError: heads the model does not have, or all of them; a probe that cannot draw held-out prompts.
        ShapeError: prompts of fewer than 11 tokens.
        TokenError: a natural text that is too short, or a model that cannot read text.
        UnsupportedModel: the model has no LM head, so that no loss is defined.
        NonFiniteError: a loss or score is not a number.
    """
    return verified(
        model,
        heads,
        probe=probe,
        ablation=ablation,
        search=search,
        top=top,
        natural=natural,
        seed=seed,
        progress=progress,
    )[0]


def verified(
    model: Source,
    heads: Heads | None = None,
    *,
    probe: Any | None = None,
    ablation: Method = "mean",
    search: Search = "race",
    top: int = TOP,
    natural: str | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    watch: Watch | None = None,
    prepared: Prepared | None = None,
) -> tuple[Verification, Scan, Samples]:
    """A verification, and the scan of its probe that it begins with; arguments and errors are those of `verify`.

    `watch` and `prepared` are those of `headscope.evidence.scan.measure.scanned`.
    """
    model = load(model)
    named = None if heads is None else model.named(heads)
    if named is not None:
        refuse_all(model, named)
    probe, held_out, controls = judged_prompts(model, probe, seed)
    started = time.perf_counter()
    report = progress or (lambda what, done, total: None)
    ablator = Ablator.of(model, held_out, method=ablation, seed=seed)
    text = None if natural is None else NaturalText.of(model, natural, ablation, seed)

    offsets = Offsets(controls)

    def watch_all(attention: Attention, index: Sequence[int]) -> None:
        offsets.watch(attention, index)
        if watch is not None:
            watch(attention, index)

    scan, samples = scanned(
        model,
        probe=probe,
        watch=watch_all,
        prepared=prepared,
        progress=lambda done, total: report("scanning", done, total),
    )
    scores: dict[HeadId, dict[str, HeadScore]] = {}
    for score in scan.scores:
        scores.setdefault(score.head, {})[score.detector] = score
    circuits = _circuits(model, seed)
    alone = {head: circuits.copying([head]) if circuits else None for head in scores}
    best_offset = offsets.best()
    stripes = [head for head in scores if has_stripe(scores[head])]
    effects: dict[HeadId, HeadEffect] = {}
    tried: list[HeadId] = []
    if named is None:
        found, tried = searched(
            ablator,
            probe,
            search=search,
            top=top,
            negligible=RULE.delta_loss_nats,
            chosen=stripes,
            progress=lambda done, total: report("searching", done, total),
        )
        effects = {one.head: one for one in found.heads}
    judged, best = (list(scores), tried) if named is None else (list(named), list(named))
    candidates = list(dict.fromkeys([*stripes, *best]))

    partial = [head for head in scores if head not in stripes and has_partial_stripe(scores[head])]
    others = others_of(stripes, [*stripes, *partial], list(scores))
    trial = Trial(ablator=ablator, probe=held_out, text=text, report=report)
    each = [frozenset([head]) for head in candidates]
    trial.run(each, natural=each)
    read_others(trial, others)
    measured = {
        one.name: one.measure(model, probe if one.probe is None else one.probe(model, seed))
        for one in head_types.HEAD_TYPES
        if one.measure is not None
    }

    def alone_evidence(head: HeadId, removed: Restored | None) -> Evidence:
        """What is known of a head without restoring it."""
        first, over_first = _first_copy(trial, head) if removed is not None else (None, None)
        return Evidence(
            head=head,
            scores=scores[head],
            offset=best_offset.get(head),
            copying=alone[head],
            removed=removed,
            first_copy=first,
            over_first_copy=over_first,
            over_random=over_others(trial, head, others.get(head, [])),
            put_back=None,
            measured={name: found[head] for name, found in measured.items() if head in found},
        )

    behind = Behind(
        trial, candidates, stripes, partial, decided=lambda head, one: effect(alone_evidence(head, one), RULE)[0] != 0
    )
    verdicts = []
    for head in judged:
        evidence = replace(
            alone_evidence(head, behind.removed.get(head)),
            put_back=behind.restored.get(head),
            behind=behind.ablated(head),
            interchangeable=behind.interchangeable(head),
        )
        verdicts.append(_judged(evidence, effects.get(head), trial))
    meanings = {one.name: one for one in head_types.meanings()}
    members = [one.head for one in verdicts if meanings[one.verdict].is_induction]
    sets, draws = _together(model, trial, members, stripes, circuits, alone, seed)
    verification = Verification(
        model=ModelInfo.of(model),
        heads=tuple(sorted(verdicts, key=lambda one: one.head)),
        sets=tuple(sets),
        controls=Controls(
            random_heads=tuple(draws),
            norm_matched=circuits is not None,
            held_out_prompts=len(held_out.prompts),
            tests=behind.tests,
        ),
        clean={kind: Estimate.of(values) for kind, values in trial.clean.items()},
        rule=RULE,
        probe=dict(probe.settings),
        ablation={
            "method": ablation,
            "search": search if named is None else None,
            "corpus": None if ablator.corpus is None else dict(ablator.corpus.settings),
        },
        provenance=Provenance.of(model, kernels=scan.provenance.kernels, seed=seed),
        timing=Timing(wall_s=time.perf_counter() - started, tokens=probe.n_tokens + held_out.n_tokens),
    )
    return verification, scan, samples


def judged_prompts(model: Model, probe: Any | None, seed: int) -> tuple[Probe, Probe, tuple[Tokens, ...]]:
    """The probe, as many held-out prompts, and the probe's controls: prompts without a repeat.

    Raises:
        ArgumentError: a probe that cannot draw held-out prompts and controls.
        ShapeError: prompts of fewer than 11 tokens.
    """
    probe = repeated_tokens(model, n_prompts=N_PROMPTS, seed=seed) if probe is None else probe_of(model, probe)
    check_fits(probe, model)
    if probe.more is None or probe.controls is None:
        raise ArgumentError(
            "verify needs a probe that can draw held-out prompts and controls, like repeated_tokens; "
            "ablate measures heads on prompts of your own."
        )
    shortest = min(map(len, probe.controls))
    if shortest < LEAST_TOKENS:
        raise ShapeError(
            f"a prompt has {shortest} tokens, too few to tell a head that looks a fixed distance back; verify needs "
            f"{LEAST_TOKENS}: use a longer period (--period)."
        )
    return probe, probe.more(len(probe.prompts)), probe.controls


def _together(
    model: Model,
    trial: Trial,
    members: list[HeadId],
    stripes: list[HeadId],
    circuits: TokenSpace | None,
    alone: dict[HeadId, Copying | None],
    seed: int,
) -> tuple[list[HeadSet], list[Draw]]:
    """The induction heads as a set, and the random heads of its layers that it is compared with."""
    if not members:
        return [], []
    subsets, drawn = matched(members, stripes, model, sizes_of(circuits), np.random.default_rng(seed))
    together = [frozenset(members)]
    trial.run(together, natural=together)
    pairs = [(frozenset(some), frozenset(others)) for some, others in zip(subsets, drawn, strict=True)]
    trial.run([world for pair in pairs for world in pair], n=FEW_PROMPTS)
    read = [[Estimate.of_loss(trial.delta(world)) for world in pair] for pair in pairs]
    unclear = [pair for pair, (some, others) in zip(pairs, read, strict=True) if not apart(some, others)]
    trial.run([world for pair in unclear for world in pair])
    draws = [_draw(trial, some, others) for some, others in zip(subsets, drawn, strict=True)]
    return [_set(trial, members, circuits, alone)], draws


def _judged(evidence: Evidence, effect: HeadEffect | None, trial: Trial) -> HeadVerdict:
    verdict, reasons = judge(evidence)
    removed = evidence.removed
    delta = removed.delta_loss_nats if removed is not None else None if effect is None else effect.delta_loss_nats
    return HeadVerdict(
        head=evidence.head,
        verdict=verdict,
        reasons=reasons,
        attention={role: score.mean for role, score in evidence.scores.items()},
        delta_loss_nats=delta,
        exact=removed is not None,
        q_value=None if removed is None else removed.q_value,
        first_copy=evidence.first_copy,
        natural=trial.natural([evidence.head]),
        over_random=evidence.over_random,
        put_back=evidence.put_back,
        copying=evidence.copying,
        offset=evidence.offset,
        behind=evidence.behind,
        interchangeable=evidence.interchangeable,
    )


def _first_copy(trial: Trial, head: HeadId) -> tuple[Estimate, Estimate]:
    """What removing a head does to the first copy's loss, and how much more it does to the second's."""
    first = trial.delta([head], "first_copy")
    return Estimate.of_loss(first), Estimate.of_loss(trial.over_first_copy([head]))


def _set(
    trial: Trial, heads: Sequence[HeadId], circuits: TokenSpace | None, alone: dict[HeadId, Copying | None]
) -> HeadSet:
    together = trial.delta(heads)
    singles = np.sum([trial.delta([head]) for head in heads], axis=0)
    copying = None if circuits is None else circuits.copying(heads)
    best = max((one.top1 for head in heads if (one := alone[head]) is not None), default=0.0)
    beyond = Estimate.of_loss(together - singles)
    low, high = beyond.ci95 or (beyond.mean, beyond.mean)
    relation: Relation = "independent"
    if len(heads) == 1:
        relation = "single"
    elif low > 0:
        relation = "redundant"
    elif high < 0 and copying is not None and copying.top1 >= best + COMPLEMENT:
        relation = "complementary"
    return HeadSet(
        heads=tuple(heads),
        relation=relation,
        delta_loss_nats=Estimate.of_loss(together),
        first_copy=Estimate.of_loss(trial.delta(heads, "first_copy")),
        natural=trial.natural(heads),
        sum_of_singles=Estimate.of_loss(singles),
        copying=copying,
    )


def _draw(trial: Trial, heads: tuple[HeadId, ...], others: tuple[HeadId, ...]) -> Draw:
    return Draw(
        heads=heads,
        delta_loss_nats=Estimate.of_loss(trial.delta(heads)),
        random_heads=others,
        random_delta_loss_nats=Estimate.of_loss(trial.delta(others)),
        random_first_copy=Estimate.of_loss(trial.delta(others, "first_copy")),
    )


def _circuits(model: Model, seed: int) -> TokenSpace | None:
    """The model in token space, or None where its weights cannot be assigned to heads."""
    try:
        return TokenSpace(model, seed=seed)
    except UnsupportedModel:
        return None
