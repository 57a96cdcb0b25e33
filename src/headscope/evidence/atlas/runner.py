"""What role files measure with: one model, shared readings, and interventions on prompts of their own.

    repeats     attention of every head for every standard detector on repeated random tokens, and on their control
    removals    loss on held-out repeats without each head, by zero and by mean ablation
    attention   of every head at places of a role's own prompts
    tests       ablation, what is read, and transfer on a role's own prompts, by the parts below
    outcome_drops, moved, dropped_places    interventions on chosen heads, prompt by prompt

Shared readings are made once and kept with the partial results, so that a run that was cut off does not repeat them.

Cost: `repeats` one pass over the prompts and their controls; `removals` about n_heads * n_layers passes of half the
layers for each method. The rest is what a role asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch

from headscope.detectors import DETECTORS
from headscope.errors import ShapeError
from headscope.evidence.atlas.keep import Keep
from headscope.evidence.atlas.samples import NotAsked, Sample, Samples
from headscope.evidence.atlas.shapes import shapes_of
from headscope.heads import HeadId
from headscope.interventions.ablation import AblatedHeads, Ablator, Intervention, Method, Queries, losses, same_length
from headscope.interventions.choices import Choices
from headscope.interventions.knockout import How, Knockout, Places, reads_values
from headscope.interventions.patch import ActivationPatch
from headscope.interventions.while_ablated import WhileAblated
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.memory import in_batches
from headscope.model.precision import brought, widened
from headscope.probes import Probe, repeated_tokens
from headscope.probes.copies import check_repeats
from headscope.probes.probe import Tokens

N_PROMPTS = 32
PERIODS = (50, 32, 24, 16, 12)
"""Periods of the repeated tokens: the first that context and vocabulary allow."""
BATCH_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens in one reading pass, before memory runs out."""
METHODS: tuple[Method, ...] = ("zero", "mean")
T = TypeVar("T")


class RoleRunner:
    """One model on the runner.

    Args:
        model: A loaded model.
        n_prompts: Prompts of every probe.
        seed: Of everything random.
        keep: Where shared readings are kept.
        report: Called with (what is being done, done, of) during long readings.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_prompts: int = N_PROMPTS,
        seed: int = 0,
        keep: Keep | None = None,
        report: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.model: Model = model
        self.n_prompts: int = n_prompts
        self.seed: int = seed
        self._keep = keep or Keep.nowhere()
        self._shared: dict[str, dict[str, np.ndarray]] = {}
        self._by_head: dict[str, dict[HeadId, Any]] = {}
        self._report: Callable[[str, int, int], None] = report or (lambda what, done, total: None)
        self.heads: tuple[HeadId, ...] = model.heads

    def kept(self, name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays that several roles share, computed once and kept with the partial results."""
        if name not in self._shared:
            self._shared[name] = self._keep.arrays(name, compute)
        return self._shared[name]

    def by_head(
        self, name: str, heads: Sequence[HeadId], compute: Callable[[Sequence[HeadId]], Mapping[HeadId, T]]
    ) -> dict[HeadId, T]:
        """What several roles measure alike of a head, computed for those heads for which none has yet."""
        known: dict[HeadId, T] = self._by_head.setdefault(name, {})
        missing = [head for head in heads if head not in known]
        if missing:
            known |= compute(missing)
        return {head: known[head] for head in heads if head in known}

    # ---- repeated tokens

    @cached_property
    def probe(self) -> Probe:
        """Repeated random tokens, of the longest period that fits.

        Raises:
            NotAsked: none fits.
        """
        why = ""
        for period in PERIODS:
            try:
                return repeated_tokens(self.model, n_prompts=self.n_prompts, period=period, seed=self.seed)
            except ShapeError as error:
                # Of the shortest, without the advice behind it, which names an option of other commands.
                why = str(error).partition(";")[0]
        raise NotAsked(f"no repeated prompt fits the model: {why}")

    @cached_property
    def held_out(self) -> Probe:
        """Further prompts of the same kind, on which heads are ablated."""
        assert self.probe.more is not None
        return self.probe.more(self.n_prompts)

    @cached_property
    def repeats(self) -> dict[str, np.ndarray]:
        """For each standard detector `NAME`, `NAME control` [prompt, head] and `NAME chance` [head]."""
        return self.kept("repeats", self._repeats)

    def _repeats(self) -> dict[str, np.ndarray]:
        probe = self.probe
        assert probe.controls is not None
        places = {one.name: [_pairs(one.targets(prompt)) for prompt in probe.prompts] for one in DETECTORS}
        found: dict[str, np.ndarray] = {}
        scores = self.attention(probe.prompts, places)
        controls = self.attention(probe.controls, places)
        for name in places:
            chance = np.mean([chance_of(one) for one in places[name]])
            found |= {name: scores[name], f"{name} control": controls[name]}
            found[f"{name} chance"] = np.full(len(self.heads), chance)
        return found

    @property
    def induction_heads(self) -> tuple[HeadId, ...]:
        """Heads that attend as induction heads do: a stripe, at least half of it lost on the control."""
        score, control = self.repeats["induction"].mean(0), self.repeats["induction control"].mean(0)
        found = (score >= 0.4) & (score - control >= 0.5 * score)
        return tuple(head for head, yes in zip(self.heads, found, strict=True) if yes)

    @cached_property
    def shapes(self) -> dict[str, np.ndarray]:
        """The shape of every head's pattern and the size of what it writes; see `headscope.evidence.atlas.shapes`."""
        probe = self.probe
        controls = probe.controls
        assert controls is not None
        return self.kept("shapes", lambda: shapes_of(self.model, self.heads, probe.prompts, controls))

    # ---- removals

    @cached_property
    def removals(self) -> dict[str, np.ndarray]:
        """`zero second_copy`, `mean first_copy` ... [prompt, head]: loss without the head minus the clean loss."""
        return self.kept("removals", self._removals)

    def _removals(self) -> dict[str, np.ndarray]:
        queries = self.copy_queries
        found: dict[str, np.ndarray] = {}
        worlds: list[AblatedHeads] = [frozenset(), *(frozenset([head]) for head in self.heads)]
        done, total = 0, len(worlds) * self.n_prompts * len(METHODS)

        def progress(pairs: int) -> None:
            nonlocal done
            done += pairs
            self._report("ablating every head", done, total)

        for method in METHODS:
            values = losses(self.copy_ablators[method], self.held_out.prompts, queries, worlds, progress=progress)
            for kind, rows in values.items():
                found[f"{method} {kind}"] = (rows[1:] - rows[:1]).T
                found[f"clean {kind}"] = rows[0]
        return found

    @cached_property
    def copy_queries(self) -> Queries:
        """Queries of the held-out prompts' second and first copies."""
        split = check_repeats(self.held_out.prompts)
        return {"second_copy": [one.second for one in split], "first_copy": [one.first for one in split]}

    @cached_property
    def copy_ablators(self) -> dict[Method, Ablator]:
        """Zero and mean ablation on the held-out prompts."""
        return {method: Ablator.of(self.model, self.held_out, method=method, seed=self.seed) for method in METHODS}

    def removal(self, head: HeadId, name: str) -> Samples:
        """One head's column of `removals`."""
        return self.removals[name][:, self.heads.index(head)]

    # ---- attention on a role's own prompts

    def attention(
        self,
        prompts: Sequence[Tokens],
        places: Mapping[str, Sequence[Places]],
        *,
        ablator: Ablator | None = None,
        without: Sequence[HeadId] = (),
    ) -> dict[str, np.ndarray]:
        """Attention at places, summed over a query's keys, mean over the queries that have any: [prompt, head] by name.

        Args:
            prompts: Token ids, of any lengths.
            places: By name, for each prompt (query, key) pairs [place, 2]; at least one in each prompt.
            ablator: How heads are ablated the while; None for none.
            without: Which heads.
        """
        found = {name: np.zeros((len(prompts), len(self.heads))) for name in places}
        column = {head: at for at, head in enumerate(self.heads)}

        def run(part: Sequence[int]) -> dict[tuple[str, int], list[tuple[int, np.ndarray]]]:
            rows = torch.from_numpy(np.stack([prompts[one] for one in part])).to(self.model.device)
            jobs: dict[str, tuple[torch.Tensor, ...]] = {}
            for name, of_prompt in places.items():
                batch = np.repeat(np.arange(len(part)), [len(of_prompt[one]) for one in part])
                pairs = np.concatenate([of_prompt[one] for one in part]).astype(np.int64)
                weight = np.concatenate(
                    [np.full(len(of_prompt[one]), 1 / max(1, len(np.unique(of_prompt[one][:, 0])))) for one in part]
                )
                jobs[name] = tuple(torch.from_numpy(one) for one in (batch, pairs[:, 0], pairs[:, 1], weight))
            seen: dict[tuple[str, int], list[tuple[int, np.ndarray]]] = {}

            substitute = None if ablator is None else ablator.substitutes(part, rows.shape[1])

            def visit(attention: Attention) -> torch.Tensor | None:
                if attention.call:
                    return None
                for name, job in jobs.items():
                    batch, query, key, weight = (brought(one, attention.z.device) for one in job)
                    at = widened(attention.probabilities(batch, query, key)) * weight[:, None]
                    sums = at.new_zeros(len(part), at.shape[1]).index_add_(0, batch, at)
                    seen.setdefault((name, attention.layer), []).append((attention.n_heads, sums.cpu().numpy()))
                gone = [one.head for one in without if one.layer == attention.layer]
                if ablator is None or substitute is None or not gone:
                    return None
                mask = torch.zeros(1, attention.n_heads, dtype=torch.bool, device=attention.z.device)
                mask[0, gone] = True
                return ablator.edited(attention, mask, substitute(attention))

            self.model.run(rows, visit, stop_at_last=True)
            return seen

        for same in same_length(prompts):
            limit = BATCH_TOKENS.get(self.model.device.type, BATCH_TOKENS["cpu"])
            for part, seen in in_batches(same, max(1, limit // len(prompts[same[0]])), run):
                for (name, layer), parts in seen.items():
                    for n_heads, sums in parts:
                        columns = [column[HeadId(layer, head)] for head in range(n_heads)]
                        found[name][np.ix_(list(part), columns)] = sums
        return {name: values.clip(max=1.0) for name, values in found.items()}

    # ---- interventions on a role's own prompts

    def tests(
        self,
        heads: Sequence[HeadId],
        prompts: Sequence[Tokens],
        choices: Choices,
        *,
        corpus: Probe,
        places: Sequence[Places],
        sources: Sequence[Tokens],
        between: Choices | None = None,
    ) -> dict[HeadId, dict[str, Sample]]:
        """The tests of a role with prompts of its own: `zero`, `mean`, `specific` where values can be read, `transfer`.

        Args:
            heads: Which heads, each alone.
            prompts: Token ids.
            choices: The two tokens of each prompt.
            corpus: Other prompts of the same form, for `mean`.
            places: For each prompt what a head with the role reads, for `specific`.
            sources: For each prompt one that ends alike and has the other answer, for `transfer`.
            between: The prompt's answer and the source's, where these are other tokens than `choices`.
        """
        drops = self.outcome_drops(heads, prompts, choices, corpus=corpus)
        specific = self.outcome_without(heads, prompts, choices, places)
        moved = self.moved(heads, prompts, sources, between or choices)
        named = {
            head: drops[head] | ({"specific": specific[head]} if head in specific else {}) | {"transfer": moved[head]}
            for head in heads
        }
        return {head: {name: Sample(values=values) for name, values in each.items()} for head, each in named.items()}

    def outcome_drops(
        self,
        heads: Sequence[HeadId],
        prompts: Sequence[Tokens],
        choices: Choices,
        *,
        corpus: Probe,
        methods: Sequence[Method] = METHODS,
    ) -> dict[HeadId, dict[str, Samples]]:
        """How far `choices`' difference falls without each head, under zero and mean ablation: names `zero`, `mean`.

        Args:
            heads: Which heads, each alone.
            prompts: Token ids.
            choices: The two tokens of each prompt.
            corpus: Other prompts of the same form, over whose z the mean is taken.
            methods: Of ablation.
        """
        probe = Probe(prompts=tuple(prompts), controls=None, settings={})
        worlds: list[AblatedHeads] = [frozenset(), *(frozenset([head]) for head in heads)]
        found: dict[HeadId, dict[str, Samples]] = {head: {} for head in heads}
        for method in methods:
            ablator = Ablator.of(self.model, probe, method=method, corpus=corpus, seed=self.seed)
            for kind, rows in losses(ablator, prompts, choices, worlds).items():
                name = method if kind == "difference" else f"{method}_{kind}"
                for head, row in zip(heads, rows[1:], strict=True):
                    found[head][name] = rows[0] - row
        return found

    def moved(
        self,
        heads: Sequence[HeadId],
        prompts: Sequence[Tokens],
        sources: Sequence[Tokens],
        choices: Choices,
        *,
        n_last: int = 1,
        own_last: int = 0,
        without: Sequence[HeadId] = (),
        corpus: Probe | None = None,
    ) -> dict[HeadId, Samples]:
        """How far `choices`' difference falls when a head's z at the last positions is that of another prompt.

        Args:
            heads: Which heads, each alone.
            prompts: Token ids.
            sources: For each prompt one that ends alike.
            choices: The first token is the prompt's own answer, the second the source's.
            n_last: How many positions are patched.
            own_last: How many of these, the last ones, are not.
            without: Heads that are mean-ablated the while, the patched one excepted.
            corpus: For `without`.
        """
        swap = ActivationPatch(model=self.model, sources=sources, n_last=n_last, own_last=own_last)
        if not without:
            worlds: list[AblatedHeads] = [frozenset(), *(frozenset([head]) for head in heads)]
            rows = losses(swap, prompts, choices, worlds)["difference"]
            return {head: rows[0] - row for head, row in zip(heads, rows[1:], strict=True)}
        probe = Probe(prompts=tuple(prompts), controls=None, settings={})
        ablator = Ablator.of(self.model, probe, method="mean", corpus=corpus, seed=self.seed)
        gone = frozenset(without)
        # Heads that stay ablated beside each other share one pass; one of `without` has a pass of its own.
        groups = [[head for head in heads if head not in gone], *([head] for head in heads if head in gone)]
        found: dict[HeadId, Samples] = {}
        for group in filter(None, groups):
            both: Intervention = WhileAblated(ablator=ablator, patched=swap, heads=frozenset(group))
            base = gone - frozenset(group)
            rows = losses(both, prompts, choices, [base, *(base | {head} for head in group)], base=base)["difference"]
            found |= {head: rows[0] - row for head, row in zip(group, rows[1:], strict=True)}
        return found

    def moved_directly(
        self, heads: Sequence[HeadId], prompts: Sequence[Tokens], sources: Sequence[Tokens], choices: Choices
    ) -> dict[HeadId, Samples]:
        """As `moved`, with every head of the layers above held at its own z: what a head does by no other head.

        MLPs recompute. Prompts of one length.
        """
        swap = ActivationPatch(model=self.model, sources=sources, n_last=1)
        held = ActivationPatch(model=self.model, sources=prompts, n_last=len(prompts[0]))
        found: dict[HeadId, Samples] = {}
        for layer in sorted({head.layer for head in heads}):
            group = frozenset(head for head in heads if head.layer == layer)
            above = frozenset(one for one in self.heads if one.layer > layer)
            both: Intervention = WhileAblated(ablator=held, patched=swap, heads=group)
            # Held at its own z in a clean pass, a head changes nothing.
            worlds: list[AblatedHeads] = [frozenset(), *(above | {head} for head in sorted(group))]
            rows = losses(both, prompts, choices, worlds)["difference"]
            found |= {head: rows[0] - row for head, row in zip(sorted(group), rows[1:], strict=True)}
        return found

    def outcome_without(
        self,
        heads: Sequence[HeadId],
        prompts: Sequence[Tokens],
        choices: Choices,
        places: Sequence[Places],
        *,
        how: How = "drop",
    ) -> dict[HeadId, Samples]:
        """How far `choices`' difference falls when a head no longer reads places of these prompts.

        Empty where the model hides its values.
        """
        if not reads_values(self.model):
            return {}
        worlds: list[AblatedHeads] = [frozenset(), *(frozenset([head]) for head in heads)]
        knockout = Knockout(model=self.model, places=places, how=how)
        rows = losses(knockout, prompts, choices, worlds)["difference"]
        return {head: rows[0] - row for head, row in zip(heads, rows[1:], strict=True)}

    def dropped_places(
        self, places: Mapping[HeadId, Sequence[Places]], *, how: How = "drop"
    ) -> dict[HeadId, dict[str, Samples]]:
        """Change of the held-out prompts' losses when a head no longer reads places of theirs: `second_copy`, ...

        Empty where the model hides its values.

        Args:
            places: For each head, alone, its places in each prompt.
            how: See `headscope.interventions.knockout`.
        """
        if not places or not reads_values(self.model):
            return {}
        knockout = Knockout(model=self.model, places=places, how=how)
        worlds: list[AblatedHeads] = [frozenset(), *(frozenset([head]) for head in places)]
        rows = losses(knockout, self.held_out.prompts, self.copy_queries, worlds)
        return {
            head: {kind: values[at] - values[0] for kind, values in rows.items()} for at, head in enumerate(places, 1)
        }


def _pairs(targets: Any) -> Places:
    return np.stack([targets.query, targets.key], axis=1)


def chance_of(places: Places) -> float:
    """What uniform attention over all earlier keys would score at places, mean over their queries."""
    return float((1 / (places[:, 0] + 1)).sum() / max(1, len(np.unique(places[:, 0]))))
