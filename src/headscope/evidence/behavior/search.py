"""Which heads carry a behaviour, and does the finding hold?

    1. score        every prompt read once: is there anything to explain?
    2. split        pairs that choose heads, and held-out pairs that test them; equal shares of every form
    3. triage       for all heads at once, by gradient: what patching each from the neutral prompt, and from the twin,
                    would remove. The best by either contrast survive. A first-order estimate: a head in whose place
                    another would act can be missed.
    4. set          greedily, by exact removal in the search pairs: heads are added one by one; where that finds no set
                    with half of the effect, they are taken back one by one from all of them, for heads that stand in
                    for each other show nothing one by one
    5. test         in held-out pairs: each survivor and the set, by mean ablation and by patching; q-values over all
    6. disproof     random sets (any heads, of the same layers, of the same size of W_O), accuracy without a claim,
                    loss on the prompts' words, the other contrasts, pairs whose answer cannot be copied, the
                    induction heads
    7. conclusion   by the rule of `headscope.evidence.behavior.conclusion`

Means for the ablation are taken per position over prompts without a claim, of the search pairs, laid end to end;
without neutral prompts, over prompts with a false and with a true claim.

Cost: every prompt once, and some 4,000 prompts more whatever the number of pairs and heads; `cost` counts them.

It misleads where the pairs do: they are short, and a model may defer otherwise in a talk.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from headscope.errors import ArgumentError, ShapeError, UnsupportedModel
from headscope.evidence.behavior.conclusion import RULE, BehaviorEvidence, conclude
from headscope.evidence.behavior.disproof import FEW, HELD_OUT_PAIRS, Disproof, flips
from headscope.evidence.behavior.findings import (
    BehaviorControls,
    Cost,
    HeadFinding,
    Item,
    Score,
    SetFinding,
)
from headscope.evidence.behavior.measure import ContrastRunner, ForwardCounter, Index, of_effect
from headscope.evidence.behavior.result import BehaviorResult
from headscope.evidence.behavior.sets import BUILT_IN, contrasts_of
from headscope.evidence.copying import TokenSpace
from headscope.evidence.scan.measure import scan
from headscope.heads import HeadId, ranking
from headscope.interventions.ablation import AblatedHeads, Ablator
from headscope.model.load import Source, load
from headscope.probes import Probe, repeated_tokens
from headscope.probes.pairs import Contrast, PromptKind, read_pairs
from headscope.probes.repeated import fitting_period
from headscope.records.common import ModelInfo, Provenance
from headscope.stats import benjamini_hochberg, p_values

TOP = 8
"""Heads that pass the triage."""
SEARCH_PAIRS = 32
"""Pairs that choose heads, at most."""
ENOUGH = 0.9
"""Where a set removes so much of the effect in the search pairs it is not made larger."""
STEP = 0.1
"""Least share of the effect that a further head must remove there."""
CORPUS_ROWS = 32
"""Rows over which means are taken, at most."""
BEYOND = 4000
"""About how many prompts are read after the score was measured."""
TESTING = "testing on held-out pairs"
FEWEST = 8
"""Facts that a search needs: half to search, half held out."""
SCAN_PROMPTS, SCAN_PERIOD = 8, 24
"""Repeated random tokens on which induction heads are found."""


def behavior(
    name: str | Path | Contrast | Sequence[Contrast],
    model: Source = "demo",
    *,
    top: int = TOP,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> BehaviorResult:
    """Measure a behaviour, search for the heads that carry it, and try to disprove what was found.

    Args:
        name: `sycophancy` (wrong facts; praise is the other contrast), `praise_agreement` (the reverse), the path of a
            file with pairs or `hub:NAME` (`headscope.load_contrast`), or contrasts: the first is searched, on the
            others its heads are tried.
        model: What `headscope.load` takes, or gives.
        top: Heads that pass the triage to be ablated and patched.
        seed: Of the split and of the random sets.
        progress: Called with (what is being done, prompts read, about how many there will be).

    Raises:
        ArgumentError: no such behaviour or file, `top` below 1, or contrasts without a neutral prompt or a twin.
        TokenError: a model without a tokenizer, or one that cannot read enough pairs.
        UnsupportedModel: the model gives no logits over its vocabulary.
        NonFiniteError: a logit is not a number.
    """
    if top < 1:
        raise ArgumentError(f"top={top}; it needs at least 1.")
    if seed < 0:
        raise ArgumentError(f"seed={seed}; it needs at least 0.")
    label, contrasts = contrasts_of(name)
    for contrast in contrasts:
        if not {"neutral", "twin"} & set(contrast.kinds):
            raise ArgumentError(
                f"the pairs of {contrast.name} have neither all a neutral prompt nor all a twin; give each one of both."
            )
    model = load(model)
    started = time.perf_counter()
    readings = [read_pairs(model, contrast) for contrast in contrasts]
    n_prompts = sum(len(tokens) for reading in readings for tokens in reading.tokens.values())
    counter = ForwardCounter(n_prompts + BEYOND, progress)
    runner, *others = [ContrastRunner(model, reading, counter) for reading in readings]
    everyone = np.arange(len(runner.pairs))
    verbatim = np.asarray([pair.verbatim for pair in runner.pairs])
    forms = {form: np.asarray([pair.form == form for pair in runner.pairs]) for form in _forms(runner)}
    search = _Search(runner, others, [one.name for one in contrasts[1:]], top=top, seed=seed)
    heads, head_set = search.test(search.choose())
    controls = search.disprove(heads, head_set)
    score, stated, said = runner.score(everyone), _some(runner, verbatim), _some(runner, ~verbatim)
    conclusion, reasons = conclude(
        BehaviorEvidence(
            behavior="sycophancy" if label in BUILT_IN else label.replace("_", " "),
            score=score,
            verbatim=stated,
            paraphrase=said,
            heads=heads,
            head_set=head_set,
            controls=controls,
            n_heads=len(search.heads),
        )
    )
    return BehaviorResult(
        model=ModelInfo.of(model),
        behavior=label,
        contrast=contrasts[0].name,
        score=score,
        forms={form: runner.score(np.flatnonzero(which)) for form, which in forms.items()},
        verbatim=stated,
        paraphrase=said,
        heads=heads,
        head_set=head_set,
        controls=controls,
        conclusion=conclusion,
        reasons=(*reasons, *_repeats(runner)),
        rule=RULE,
        items=_items(runner),
        left_out={
            f"{contrast.name}: {pair}": why
            for contrast, reading in zip(contrasts, readings, strict=True)
            for pair, why in reading.left_out.items()
        },
        problems=tuple(problem for contrast in contrasts for problem in contrast.problems),
        cost=Cost(
            forwards=counter.forwards,
            exhaustive=len(search.heads) * runner.n_prompts,
            wall_s=time.perf_counter() - started,
        ),
        provenance=Provenance.of(model, kernels=model.check.kernels, seed=seed),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tested:
    """Worlds tried on held-out pairs, by removal and by patching."""

    found: dict[str, Float[np.ndarray, "world chosen"]]
    """D of the prompts that an effect takes, without the heads."""
    removed: Float[np.ndarray, "world fact"]
    patched: Float[np.ndarray, "world fact"]
    q_removed: Float[np.ndarray, " world"]
    q_patched: Float[np.ndarray, " world"]
    effect: float
    """Mean over the facts."""

    @classmethod
    def of(cls, runner: ContrastRunner, ablator: Ablator, pairs: Index, worlds: Sequence[AblatedHeads]) -> _Tested:
        """All of them, in one family of tests."""
        found = runner.ablated(ablator, pairs, worlds, TESTING)
        removed = runner.by_fact(runner.removed(found, pairs), pairs)
        patched = runner.by_fact(runner.patched(pairs, worlds, TESTING), pairs)
        q = benjamini_hochberg(p_values(np.concatenate([removed, patched]).T))
        return cls(
            found=found,
            removed=removed,
            patched=patched,
            q_removed=q[: len(worlds)],
            q_patched=q[len(worlds) :],
            effect=runner.mean_effect(pairs),
        )

    def share(self, world: int) -> float | None:
        """Removed as a share of the effect; None where there is none."""
        return float(self.removed[world].mean()) / self.effect if self.effect > 0 else None

    def carries(self, world: int, *, least: float = 0.0) -> bool:
        """Whether a world lowers the effect significantly, by more than this share of it, both ways."""
        share, q = self.share(world), max(self.q_removed[world], self.q_patched[world])
        lowers = share is not None and share > least and float(self.patched[world].mean()) > 0
        return lowers and bool(q <= RULE.false_discovery)


class _Search:
    """One search on one contrast."""

    def __init__(
        self, runner: ContrastRunner, others: Sequence[ContrastRunner], names: Sequence[str], *, top: int, seed: int
    ) -> None:
        self.runner, self.model, self.others, self.names = runner, runner.model, others, names
        self.heads = list(self.model.heads)
        self.top = max(1, min(top, len(self.heads) // 2))
        self.largest = min(RULE.largest_set(len(self.heads)), self.top)
        self.random = np.random.default_rng(seed)
        self.searched, self.held_out = self._split()
        self.tests = 0
        longest = max(max(map(len, tokens)) for one in (runner, *others) for tokens in one.reading.tokens.values())
        rows = runner.corpus(self.searched, CORPUS_ROWS, longest)
        self.ablator = Ablator(
            model=self.model,
            method="mean",
            corpus=Probe(
                prompts=rows,
                controls=None,
                settings={"kind": "prompts without a claim" if runner.calm == "neutral" else "prompts and twins"},
            ),
            positions=None,
            seed=seed,
        )
        try:
            self.circuits: TokenSpace | None = TokenSpace(self.model, seed=seed)
        except UnsupportedModel:
            self.circuits = None
        self.induction: tuple[HeadId, ...] = ()
        self.scores = self._induction_scores(seed)

    def _split(self) -> tuple[Index, Index]:
        """Pairs that choose and pairs that test, in equal shares of every form that has enough of them.

        All pairs of a fact are on one side. Of the facts of a side each gives one pair before any gives a second.
        """
        facts, pairs = self.runner.facts, self.runner.pairs
        own = {int(fact): np.flatnonzero(facts == fact) for fact in np.unique(facts)}
        if len(own) < FEWEST:
            raise ArgumentError(
                f"the {len(pairs)} pairs are about {len(own)} different ids, and {FEWEST} are needed: pairs of one id "
                "count once; give more facts."
            )
        groups = [[fact for fact, at in own.items() if pairs[at[0]].form == form] for form in _forms(self.runner)]
        groups = [group for group in groups if group]
        if min(map(len, groups)) < FEW:
            groups = [list(own)]
        searched, held_out = list[np.ndarray](), list[np.ndarray]()
        for group in groups:
            order = self.random.permutation(group)
            half = len(order) // 2
            for side, into, most in ((order[:half], searched, SEARCH_PAIRS), (order[half:], held_out, HELD_OUT_PAIRS)):
                into.append(_in_turn([own[int(fact)] for fact in side])[: math.ceil(most / len(groups))])
        one, two = (self.random.permutation(np.concatenate(part)) for part in (searched, held_out))
        return one, two

    def _induction_scores(self, seed: int) -> dict[HeadId, float]:
        """Each head's induction score; nothing where repeated tokens do not fit the model."""
        try:
            probe = repeated_tokens(
                self.model, n_prompts=SCAN_PROMPTS, period=fitting_period(self.model, SCAN_PERIOD), seed=seed
            )
        except ShapeError:
            return {}
        found = scan(self.model, probe=probe, detectors=["induction"])
        self.runner.counter.add("scanning", 2 * len(probe.prompts))
        self.induction = tuple(one.head for one in found.heads("induction"))
        return {one.head: one.mean for one in found.scores}

    def choose(self) -> tuple[dict[HeadId, dict[str, float]], tuple[HeadId, ...]]:
        """Heads that pass the triage, with its estimates, and the set; on the search pairs alone."""
        against: list[PromptKind] = [kind for kind in self.runner.kinds if kind != "prompt"]
        estimates = {
            kind: self.runner.triage(self.searched, self.heads, kind, "triage by gradient") for kind in against
        }
        orders = [np.argsort(-estimates[kind].round(6), kind="stable") for kind in against]
        best = list(dict.fromkeys(int(one) for rank in zip(*orders, strict=True) for one in rank))[: self.top]
        triage = {self.heads[one]: {kind: float(estimates[kind][one]) for kind in against} for one in sorted(best)}
        return triage, self._greedy(tuple(triage))

    def _greedy(self, survivors: tuple[HeadId, ...]) -> tuple[HeadId, ...]:
        """The set: grown head by head, or shrunk head by head from all survivors where that takes more."""
        effect = self.runner.mean_effect(self.searched)
        if effect <= 0:
            return ()
        grown, gone = self._grown(survivors, effect)
        if gone >= RULE.removed * effect or len(survivors) <= self.largest:
            return grown
        shrunk, also_gone = self._shrunk(survivors, effect)
        return shrunk if also_gone >= gone + STEP * effect else grown

    def _grown(self, survivors: tuple[HeadId, ...], effect: float) -> tuple[tuple[HeadId, ...], float]:
        """Each time the head whose removal, with those before, takes most of the effect; and what the set takes."""
        chosen: tuple[HeadId, ...] = ()
        gone = 0.0
        while len(chosen) < min(self.largest, len(survivors)) and gone < ENOUGH * effect:
            left = [head for head in survivors if head not in chosen]
            removed = self._removed([frozenset([*chosen, head]) for head in left])
            best = int(removed.round(6).argmax())
            if removed[best] < gone + STEP * effect:
                break
            chosen, gone = (*chosen, left[best]), float(removed[best])
        return chosen, gone

    def _shrunk(self, survivors: tuple[HeadId, ...], effect: float) -> tuple[tuple[HeadId, ...], float]:
        """Of all survivors, each time without the head that is missed least; none where all together take little."""
        chosen, gone = survivors, float(self._removed([frozenset(survivors)])[0])
        while len(chosen) > self.largest:
            if gone < RULE.removed * effect:
                return (), 0.0
            removed = self._removed([frozenset(chosen) - {head} for head in chosen])
            least = int(removed.round(6).argmax())
            chosen, gone = tuple(head for head in chosen if head != chosen[least]), float(removed[least])
        return chosen, gone

    def _removed(self, worlds: Sequence[AblatedHeads]) -> Float[np.ndarray, " world"]:
        """What each set takes of the effect in the search pairs."""
        found = self.runner.ablated(self.ablator, self.searched, worlds, "choosing a set")
        return self.runner.by_fact(self.runner.removed(found, self.searched), self.searched).mean(1)

    def test(
        self, chosen: tuple[dict[HeadId, dict[str, float]], tuple[HeadId, ...]]
    ) -> tuple[tuple[HeadFinding, ...], SetFinding | None]:
        """Each survivor and the set, on held-out pairs."""
        triage, head_set = chosen
        worlds: list[AblatedHeads] = [frozenset([head]) for head in triage] + (
            [frozenset(head_set)] if head_set else []
        )
        tested = _Tested.of(self.runner, self.ablator, self.held_out, worlds)
        self.tests = 2 * len(worlds)
        together = self._set(head_set, tested) if head_set else None
        attention, mixed = self.runner.looks(self.held_out, TESTING)
        direct = self._direct(mixed)
        heads = [
            HeadFinding(
                head=head,
                triage=estimates,
                removed=of_effect(tested.removed[one]),
                q_value=float(tested.q_removed[one]),
                patched=of_effect(tested.patched[one]),
                patched_q_value=float(tested.q_patched[one]),
                share=tested.share(one),
                attention=self.runner.estimate(attention[head], self.held_out),
                direct=None if direct is None else self.runner.estimate(direct[head], self.held_out),
                induction=self.scores.get(head),
                carries=tested.carries(one),
                named=together is not None and together.carries and head in together.heads,
            )
            for one, (head, estimates) in enumerate(triage.items())
        ]
        return tuple(sorted(heads, key=lambda one: ranking(one.removed.mean, one.head))), together

    def _set(self, head_set: tuple[HeadId, ...], tested: _Tested) -> SetFinding:
        """The last world of the test."""
        runner, pairs = self.runner, self.held_out
        removed = runner.removed(tested.found, pairs)[-1]
        said = np.asarray([not runner.pairs[one].verbatim for one in pairs])
        some = pairs[said]
        enough = len(np.unique(runner.facts[some])) >= FEW and len(some) < len(pairs)
        there = runner.mean_effect(some) if enough else 0.0
        neutral_share = before = after = None
        if "neutral" in runner.kinds:
            before, calm = runner.clean["neutral"][pairs], tested.found.get("neutral")
            if calm is None:
                calm = runner.differences(self.ablator, "neutral", pairs, [frozenset(head_set)], TESTING)
            after = calm[-1]
            whole = runner.effect(pairs, "neutral")
            left = runner.by_fact(tested.found["prompt"][-1] - after, pairs).mean()
            if (mean := runner.by_fact(whole, pairs).mean()) > 0:
                neutral_share = float(1 - left / mean)
        known = runner.known[pairs]
        return SetFinding(
            heads=head_set,
            removed=of_effect(tested.removed[-1]),
            q_value=float(tested.q_removed[-1]),
            patched=of_effect(tested.patched[-1]),
            patched_q_value=float(tested.q_patched[-1]),
            share=tested.share(-1),
            neutral_share=neutral_share,
            paraphrase_removed=of_effect(runner.by_fact(removed[said], some)) if enough else None,
            paraphrase_share=float(runner.by_fact(removed[said], some).mean()) / there
            if enough and there > 0
            else None,
            flips_before=flips(runner, runner.clean["prompt"][pairs], pairs, known),
            flips_after=flips(runner, tested.found["prompt"][-1], pairs, known),
            accuracy_before=None if before is None else runner.share(before < 0, pairs),
            accuracy_after=None if after is None else runner.share(after < 0, pairs),
            text_loss_nats=runner.estimate(runner.text_loss(self.ablator, pairs, frozenset(head_set), TESTING), pairs),
            carries=tested.carries(-1, least=RULE.named),
        )

    def _direct(self, mixed: dict[HeadId, np.ndarray]) -> dict[HeadId, np.ndarray] | None:
        """Each head's push at the answer along the direct path, as a share of all heads' pushes in the same pair."""
        if self.circuits is None:
            return None
        words = self.circuits.unembedding
        answer = torch.from_numpy(self.runner.reading.answer["prompt"][self.held_out]).to(words.device)
        other = torch.from_numpy(self.runner.reading.other["prompt"][self.held_out]).to(words.device)
        between = words[answer] - words[other]
        pushes: dict[HeadId, np.ndarray] = {}
        for head, z in mixed.items():
            _, write = self.circuits.ov([head])
            pushes[head] = ((torch.from_numpy(z).to(write) @ write) * between.to(write)).sum(1).cpu().double().numpy()
        size = np.abs(np.stack(list(pushes.values()))).sum(0)
        return {head: push / np.where(size > 0, size, 1.0) for head, push in pushes.items()}

    def disprove(self, heads: Sequence[HeadFinding], head_set: SetFinding | None) -> BehaviorControls:
        """Random sets, the induction heads and the other contrasts."""
        disproof = Disproof(
            runner=self.runner,
            ablator=self.ablator,
            circuits=self.circuits,
            heads=tuple(self.heads),
            induction=self.induction,
            held_out=self.held_out,
            random=self.random,
        )
        named = [one.head for one in heads if one.named]
        draws, own = ([], None) if head_set is None else disproof.draws(head_set.heads)
        return BehaviorControls(
            draws=tuple(draws),
            set_removed=own,
            induction=disproof.induction_heads(named) if self.scores else None,
            others=tuple(
                disproof.other(name, other, head_set) for name, other in zip(self.names, self.others, strict=True)
            ),
            search_pairs=len(self.searched),
            held_out_pairs=len(self.held_out),
            tests=self.tests,
        )


def _in_turn(rows: Sequence[Index]) -> Index:
    """The first of each row, then the second of each that has one, and so on."""
    longest = max(map(len, rows))
    return np.asarray([row[turn] for turn in range(longest) for row in rows if turn < len(row)])


def _repeats(runner: ContrastRunner) -> tuple[str, ...]:
    """A note where several pairs share a fact: they count once."""
    n_facts = len(np.unique(runner.facts))
    if n_facts == len(runner.pairs):
        return ()
    return (
        f"the {len(runner.pairs)} pairs are about {n_facts} ids; pairs of one id, or of the same words, count once",
    )


def _forms(runner: ContrastRunner) -> list[str]:
    return list(dict.fromkeys(pair.form for pair in runner.pairs))


def _some(runner: ContrastRunner, which: np.ndarray) -> Score | None:
    """The score of some pairs, if there are enough of them."""
    chosen = np.flatnonzero(which)
    return runner.score(chosen) if len(np.unique(runner.facts[chosen])) >= FEW else None


def _items(runner: ContrastRunner) -> tuple[Item, ...]:
    return tuple(
        Item(
            id=pair.id,
            topic=pair.topic,
            form=pair.form,
            verbatim=pair.verbatim,
            prompt=pair.prompt,
            answer=pair.answer,
            other=pair.other,
            differences={kind: float(runner.clean[kind][one]) for kind in runner.kinds},
        )
        for one, pair in enumerate(runner.pairs)
    )
