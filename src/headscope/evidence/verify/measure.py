"""Verify: which heads does the second copy depend on, and what is each head?

    1. scan          every head's attention, on the probe's prompts; where each looks at a fixed offset
    2. candidates    heads with a stripe, and the top k by their effect on the second copy's loss (`every_head`), all on
                     the probe's prompts. From here on only held-out prompts count, drawn after them.
    3. one by one    each candidate taken out: loss of the second and of the first copy, and of natural text
    4. put back      all stripe heads taken out but one, against all: what one does when the others cannot
    5. random heads  matched by layer and size of W_O, at least 5 draws, for each stripe head and for the set
    6. copying       from the weights, for each head and for the set
    7. verdict       by the rule of `headscope.evidence.verify.verdict`

Cost: the search, a third or less of one pass per head and prompt, and about half a pass for each of the worlds of
steps 3 to 5, at most 7 for a stripe head and 1 for another candidate.

It misleads where the probe does: these are random tokens, and a head may do the same on text for other reasons.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headscope.errors import ArgumentError, ShapeError, TokenError, UnsupportedModel
from headscope.evidence.ablation.each import N_PROMPTS, TOP, HeadEffect, Search, ablate_each
from headscope.evidence.ablation.measure import refuse_all
from headscope.evidence.copying import Circuits, Copying
from headscope.evidence.offsets import LEAST_TOKENS, best_offsets
from headscope.evidence.scan.measure import scan as read_attention
from headscope.evidence.scan.result import HeadScore, Timing
from headscope.evidence.verify.result import Controls, Draw, HeadSet, HeadVerdict, Relation, Verification
from headscope.evidence.verify.verdict import RULE, Change, Evidence, has_stripe, judge, suppresses
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, Losses, Method, Queries, World, losses
from headscope.model.load import Heads, Model, load
from headscope.model.tokenizer import tokenizing
from headscope.probes import Probe, repeated_tokens
from headscope.probes.copies import check_repeats
from headscope.probes.probe import Tokens, check_fits
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.stats import benjamini_hochberg, p_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

N_DRAWS = 5
"""Draws of matched random heads."""
NEAREST = 3
"""A matched head is one of so many whose W_O is nearest in size."""
WINDOW = 128
"""Tokens in a window of natural text."""
MAX_WINDOWS = 64
"""Windows of it that are read; half of them are the clean corpus."""
COMPLEMENT = 0.25
"""How much more often a set must raise the attended token to the top than its best head alone."""


def verify(
    model: Model | PreTrainedModel | str | Path,
    heads: Heads | None = None,
    *,
    probe: Probe | None = None,
    ablation: Method = "mean",
    search: Search = "race",
    top: int = TOP,
    natural: str | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Verification:
    """Take heads out, alone and together, hold them against controls, and call each head by what it is.

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
    model = load(model)
    named: tuple[HeadId, ...] | None = None
    if heads is not None:
        named = model.named(heads)
        refuse_all(model, named)
    probe = probe if probe is not None else repeated_tokens(model, n_prompts=N_PROMPTS, seed=seed)
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
    started = time.perf_counter()
    report = progress or (lambda what, done, total: None)
    held_out = probe.more(len(probe.prompts))
    ablator = Ablator.of(model, held_out, method=ablation, seed=seed)
    text = None if natural is None else _Text.of(model, natural, ablation, seed)

    scan = read_attention(model, probe=probe, progress=lambda done, total: report("scanning", done, total))
    scores: dict[HeadId, dict[str, HeadScore]] = {}
    for score in scan.scores:
        scores.setdefault(score.head, {})[score.detector] = score
    circuits = _circuits(model, seed)
    alone = {head: circuits.copying([head]) if circuits else None for head in scores}
    offsets = best_offsets(model, probe.controls)
    stripes = [head for head in scores if has_stripe(scores[head])]
    effects: dict[HeadId, HeadEffect] = {}
    if named is None:
        found = ablate_each(
            model,
            probe=probe,
            method=ablation,
            search=search,
            top=top,
            corpus=ablator.corpus,
            seed=seed,
            progress=lambda done, total: report("searching", done, total),
        )
        effects = {one.head: one for one in found.heads}
        best = [one.head for one in found.heads[:top]]
    else:
        best = list(named)
    judged = list(scores) if named is None else list(named)
    candidates = list(dict.fromkeys([*stripes, *best]))

    team = [head for head in stripes if not suppresses(alone[head])]
    random = np.random.default_rng(seed)
    sizes = _sizes(circuits)
    matched = {head: _matched([head], stripes, model, sizes, random)[1] for head in stripes}
    trial = _Trial(ablator=ablator, probe=held_out, text=text, report=report)
    trial.run(
        [
            *(frozenset([head]) for head in candidates),
            *(frozenset([one]) for drawn in matched.values() for draw in drawn for one in draw),
            frozenset(team),
            *(frozenset(team) - {head} for head in team if len(team) > 1),
        ],
        natural=[frozenset([head]) for head in candidates],
    )
    removed, put_back = _tested(trial, candidates, team)
    verdicts = []
    for head in judged:
        first, over_first = _first_copy(trial, head) if head in removed else (None, None)
        evidence = Evidence(
            head=head,
            scores=scores[head],
            offset=offsets.get(head),
            copying=alone[head],
            removed=removed.get(head),
            first_copy=first,
            over_first_copy=over_first,
            over_random=_over_random(trial, head, matched.get(head, [])),
            put_back=put_back.get(head),
        )
        verdicts.append(_judged(evidence, effects.get(head), trial))
    members = [one.head for one in verdicts if one.verdict in ("induction", "redundant_induction")]
    sets, draws = [], []
    if members:
        subsets, drawn = _matched(members, stripes, model, sizes, random)
        trial.run([frozenset(members), *map(frozenset, subsets), *map(frozenset, drawn)], natural=[frozenset(members)])
        sets = [_set(trial, members, circuits, alone)]
        draws = [_draw(trial, some, others) for some, others in zip(subsets, drawn, strict=True)]
    return Verification(
        model=ModelInfo.of(model),
        heads=tuple(sorted(verdicts, key=lambda one: one.head)),
        sets=tuple(sets),
        controls=Controls(
            random_heads=tuple(draws),
            norm_matched=sizes is not None,
            held_out_prompts=len(held_out.prompts),
            tests=len(removed) + len(put_back),
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Text:
    """Natural text to try removals on: its own windows, and an ablator whose clean corpus is other windows."""

    ablator: Ablator
    prompts: tuple[Tokens, ...]
    queries: Queries

    @classmethod
    def of(cls, model: Model, text: str, method: Method, seed: int) -> _Text:
        if model.tokenizer is None:
            raise TokenError(f"{model.id} has no tokenizer, so it cannot read natural text; load it with tokenizer=.")
        with tokenizing(model.id):
            read = model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = np.asarray(read, dtype=np.int64)
        start = [] if model.bos_token_id is None else [model.bos_token_id]
        body = min(WINDOW, model.max_tokens or WINDOW) - len(start)
        windows = [np.asarray([*start, *ids[at : at + body]]) for at in range(0, len(ids) - body + 1, body)]
        if len(windows) < 4:
            raise TokenError(
                f"the natural text has {len(ids)} tokens; it needs at least {4 * body}, two windows of {body} to score "
                "and two others for the clean corpus: give a longer text."
            )
        chosen = sorted(np.random.default_rng(seed).permutation(len(windows))[:MAX_WINDOWS])
        kept = [windows[one] for one in chosen]
        scored = Probe(prompts=tuple(kept[::2]), controls=None, settings={"kind": "natural"})
        corpus = Probe(prompts=tuple(kept[1::2]), controls=None, settings={"kind": "natural, other windows"})
        return cls(
            ablator=Ablator.of(model, scored, method=method, corpus=corpus, seed=seed),
            prompts=scored.prompts,
            queries={"natural": [np.arange(body + len(start) - 1)] * len(scored.prompts)},
        )


class _Trial:
    """Losses of worlds on the held-out prompts, each world measured once."""

    def __init__(
        self, *, ablator: Ablator, probe: Probe, text: _Text | None, report: Callable[[str, int, int], None]
    ) -> None:
        split = check_repeats(probe.prompts)
        self._ablator, self._prompts, self._text, self._report = ablator, probe.prompts, text, report
        self._queries: Queries = {
            "second_copy": [one.second for one in split],
            "first_copy": [one.first for one in split],
        }
        self._found: dict[tuple[str, World], np.ndarray] = {}
        self.clean: dict[str, np.ndarray] = {}

    def run(self, worlds: Sequence[World], *, natural: Sequence[World]) -> None:
        """Measure what is not known yet."""
        self._measure(self._ablator, self._prompts, self._queries, worlds, "second_copy", "ablating")
        if self._text is not None:
            text = self._text
            self._measure(text.ablator, text.prompts, text.queries, natural, "natural", "reading text")

    def _measure(
        self,
        ablator: Ablator,
        prompts: Sequence[Tokens],
        queries: Queries,
        worlds: Sequence[World],
        kind: str,
        label: str,
    ) -> None:
        missing = [world for world in dict.fromkeys([frozenset(), *worlds]) if (kind, world) not in self._found]
        if not missing:
            return
        done, total = 0, len(missing) * len(prompts)

        def progress(pairs: int) -> None:
            nonlocal done
            done += pairs
            self._report(label, min(done, total), total)

        found: Losses = losses(ablator, prompts, queries, missing, progress=progress)
        for name, rows in found.items():
            self._found |= {(name, world): row for world, row in zip(missing, rows, strict=True)}
            self.clean[name] = self._found[name, frozenset()]

    def delta(self, heads: set[HeadId] | Sequence[HeadId], kind: str = "second_copy") -> Float[np.ndarray, " prompt"]:
        """Loss without these heads minus the clean loss, in each prompt."""
        return self._found[kind, frozenset(heads)] - self.clean[kind]

    def natural(self, heads: Sequence[HeadId]) -> Estimate | None:
        """The same on natural text; None where there is none."""
        return None if ("natural", frozenset(heads)) not in self._found else Estimate.of(self.delta(heads, "natural"))


def _judged(evidence: Evidence, effect: HeadEffect | None, trial: _Trial) -> HeadVerdict:
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
    )


def _tested(
    trial: _Trial, candidates: Sequence[HeadId], team: Sequence[HeadId]
) -> tuple[dict[HeadId, Change], dict[HeadId, Change]]:
    """Each candidate removed, and each of the team put back where all of it is gone; q-values over all of these."""
    rows = [trial.delta({head}) for head in candidates]
    others = team if len(team) > 1 else []
    rows += [trial.delta(team) - trial.delta(set(team) - {head}) for head in others]
    q = benjamini_hochberg(np.asarray([float(p_values(row)) for row in rows])) if rows else np.empty(0)
    changes = [Change(delta_loss_nats=Estimate.of(row), q_value=float(one)) for row, one in zip(rows, q, strict=True)]
    n = len(candidates)
    return dict(zip(candidates, changes[:n], strict=True)), dict(zip(others, changes[n:], strict=True))


def _first_copy(trial: _Trial, head: HeadId) -> tuple[Estimate, Estimate]:
    """What removing a head does to the first copy's loss, and how much more it does to the second's."""
    first = trial.delta({head}, "first_copy")
    return Estimate.of(first), Estimate.of(trial.delta({head}) - first)


def _over_random(trial: _Trial, head: HeadId, draws: Sequence[tuple[HeadId, ...]]) -> Estimate | None:
    if not draws:
        return None
    return Estimate.of(trial.delta({head}) - np.mean([trial.delta(draw) for draw in draws], axis=0))


def _set(
    trial: _Trial, heads: Sequence[HeadId], circuits: Circuits | None, alone: dict[HeadId, Copying | None]
) -> HeadSet:
    together = trial.delta(heads)
    singles = np.sum([trial.delta({head}) for head in heads], axis=0)
    copying = None if circuits is None else circuits.copying(heads)
    best = max((one.top1 for head in heads if (one := alone[head]) is not None), default=0.0)
    beyond = Estimate.of(together - singles)
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
        delta_loss_nats=Estimate.of(together),
        first_copy=Estimate.of(trial.delta(heads, "first_copy")),
        natural=trial.natural(heads),
        sum_of_singles=Estimate.of(singles),
        copying=copying,
    )


def _draw(trial: _Trial, heads: tuple[HeadId, ...], others: tuple[HeadId, ...]) -> Draw:
    return Draw(
        heads=heads,
        delta_loss_nats=Estimate.of(trial.delta(heads)),
        random_heads=others,
        random_delta_loss_nats=Estimate.of(trial.delta(others)),
        random_first_copy=Estimate.of(trial.delta(others, "first_copy")),
    )


def _circuits(model: Model, seed: int) -> Circuits | None:
    """The model in token space, or None where its weights cannot be told apart by head."""
    try:
        return Circuits(model, seed=seed)
    except UnsupportedModel:
        return None


def _sizes(circuits: Circuits | None) -> dict[HeadId, float] | None:
    """Frobenius norm of each head's W_O, where the weights can be told apart."""
    if circuits is None:
        return None
    return {
        HeadId(layer, head): float(w_o.norm())
        for layer, weights in circuits.layers.items()
        for head, w_o in enumerate(weights.w_o)
    }


def _matched(
    heads: Sequence[HeadId],
    stripes: Sequence[HeadId],
    model: Model,
    sizes: dict[HeadId, float] | None,
    random: np.random.Generator,
) -> tuple[list[tuple[HeadId, ...]], list[tuple[HeadId, ...]]]:
    """Draws of some of these heads, and of as many others without a stripe, each from its layer and of its size.

    Where a layer has fewer others than heads of the set, so many of the set are drawn too: both have one count.
    """
    subsets, draws = [], []
    for _ in range(N_DRAWS):
        some: list[HeadId] = []
        others: list[HeadId] = []
        for layer in sorted({head.layer for head in heads}):
            pool = [HeadId(layer, one) for one in range(model.check.heads[layer])]
            pool = [one for one in pool if one not in stripes and one not in heads]
            here = [head for head in heads if head.layer == layer]
            for index in sorted(random.permutation(len(here))[: len(pool)].tolist()):
                near = sorted(pool, key=lambda one: _apart(sizes, one, here[index]))[:NEAREST]
                drawn = near[int(random.integers(len(near)))]
                pool.remove(drawn)
                some.append(here[index])
                others.append(drawn)
        if some:
            subsets.append(tuple(some))
            draws.append(tuple(others))
    return subsets, draws


def _apart(sizes: dict[HeadId, float] | None, first: HeadId, second: HeadId) -> float:
    """How much two heads' W_O differ in size, as a ratio; 0 where sizes are not known."""
    if sizes is None:
        return 0.0
    one, two = sizes[HeadId(first.layer, first.head)], sizes[HeadId(second.layer, second.head)]
    return abs(math.log(one / two)) if one > 0 and two > 0 else 0.0 if one == two else math.inf
