"""A model on contrastive pairs, in as many worlds as asked for; it counts what it reads.

Everything here is `headscope.interventions.ablation` and its gradient on the pairs of one contrast, an effect being a
difference between two prompts of one pair.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from headscope.evidence.ablation.each import gradients
from headscope.evidence.behavior.findings import Score
from headscope.heads import HeadId
from headscope.interventions.ablation import AblatedHeads, Ablator, Intervention, losses, prompts_at_once, same_length
from headscope.interventions.choices import KIND, Choices
from headscope.interventions.patch import ActivationPatch
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.memory import in_batches
from headscope.probes.pairs import KINDS, Pair, PromptKind, Reading, claim_places
from headscope.probes.probe import Tokens
from headscope.records.common import Estimate

# With its underscore the axis binds nothing: a call may take two lists of pairs.
Index = Int[np.ndarray, " _chosen"]
BACKWARD = 2
"""Forward passes that a backward pass costs."""
RESOLUTION = 0.03
"""Nats. A head that takes 1.4 nats of the effect in one fact of 48 moves the mean by so much, and 48 facts miss it in
0.36 of all draws, (47 / 48)^48: no interval of what is gone claims to know it better. Small beside an effect that turns
answers."""


def of_effect(samples: Float[np.ndarray, " fact"]) -> Estimate:
    """The mean over facts of what is gone of the effect, to no more than `RESOLUTION`."""
    return Estimate.of(samples, resolution=RESOLUTION)


class ForwardCounter:
    """Counts prompts read.

    Args:
        expected: About how many there will be.
        report: Called with (what is being done, prompts read, about how many in all).
    """

    def __init__(self, expected: int, report: Callable[[str, int, int], None] | None = None) -> None:
        self.forwards: int = 0
        self._expected = expected
        self._report: Callable[[str, int, int], None] = report or (lambda label, done, total: None)

    def add(self, label: str, count: int) -> None:
        """So many prompts more, and what for."""
        self.forwards += count
        self._report(label, self.forwards, max(self._expected, self.forwards))


class ContrastRunner:
    """One contrast as one model reads it."""

    def __init__(self, model: Model, reading: Reading, counter: ForwardCounter) -> None:
        self.model: Model = model
        self.reading: Reading = reading
        self.counter: ForwardCounter = counter
        self.pairs: tuple[Pair, ...] = reading.pairs
        self.facts: np.ndarray = _facts(reading.pairs)
        self.kinds: tuple[PromptKind, ...] = tuple(kind for kind in KINDS if kind in reading.tokens)
        self.against: PromptKind = "twin" if "twin" in self.kinds else "neutral"
        self.calm: PromptKind = "neutral" if "neutral" in self.kinds else "twin"
        nothing = Ablator(model=model, method="zero", corpus=None, positions=None, seed=0)
        everyone = np.arange(len(self.pairs))
        self.clean: dict[str, np.ndarray] = {}
        for kind in self.kinds:
            self.clean[kind] = self.differences(nothing, kind, everyone, [frozenset()], "reading")[0]

    @property
    def n_prompts(self) -> int:
        """Prompts of all pairs."""
        return len(self.kinds) * len(self.pairs)

    @property
    def known(self) -> np.ndarray:
        """[pair]: whether the true answer is preferred where nothing is claimed."""
        return self.clean[self.calm] < 0

    def effect(self, chosen: Index, against: PromptKind | None = None) -> Float[np.ndarray, " chosen"]:
        """What the claim does to d in these pairs."""
        return (self.clean["prompt"] - self.clean[against or self.against])[chosen]

    def by_fact(self, values: Float[np.ndarray, "*rest _chosen"], chosen: Index) -> Float[np.ndarray, "*rest fact"]:
        """Means over the pairs of each fact: facts are the independent draws, the ways to put one are not."""
        return by_group(values, self.facts[chosen])

    def estimate(self, values: Float[np.ndarray, " _chosen"], chosen: Index) -> Estimate:
        """The mean over facts of something measured in these pairs."""
        return Estimate.of(self.by_fact(values, chosen))

    def share(self, answers: Bool[np.ndarray, " _chosen"], chosen: Index) -> Estimate:
        """The share of yes, in the mean over facts."""
        return Estimate.share(self.by_fact(answers.astype(float), chosen))

    def mean_effect(self, chosen: Index) -> float:
        """Mean over facts of the change in d that the claim causes."""
        return float(self.by_fact(self.effect(chosen), chosen).mean())

    def score(self, chosen: Index) -> Score:
        """The behaviour in these pairs."""
        known = self.known[chosen]
        turned = (self.clean["prompt"][chosen] > 0)[known]
        return Score(
            n_pairs=len(chosen),
            n_known=int(known.sum()),
            claimed_minus_true=self.estimate(self.clean["prompt"][chosen], chosen),
            claim_minus_neutral=self.estimate(self.effect(chosen, "neutral"), chosen)
            if "neutral" in self.kinds
            else None,
            claim_minus_twin=self.estimate(self.effect(chosen, "twin"), chosen) if "twin" in self.kinds else None,
            flips=self.share(turned, chosen[known]) if len(turned) else None,
            neutral_accuracy=self.share(known, chosen),
        )

    def differences(
        self, intervention: Intervention, kind: PromptKind, chosen: Index, worlds: Sequence[AblatedHeads], label: str
    ) -> Float[np.ndarray, "world chosen"]:
        """D of these pairs' prompts of one kind in each world."""
        distinct = {world: row for row, world in enumerate(dict.fromkeys([frozenset(), *worlds]))}
        asked = self._choices(kind)
        found = losses(intervention, self.reading.tokens[kind], asked, list(distinct), index=chosen.tolist())[KIND]
        self.counter.add(label, found.size)
        return found[[distinct[world] for world in worlds]]

    def ablated(
        self, ablator: Ablator, chosen: Index, worlds: Sequence[AblatedHeads], label: str
    ) -> dict[str, Float[np.ndarray, "world chosen"]]:
        """D of the prompt and of its contrast prompt, for each set of ablated heads."""
        return {kind: self.differences(ablator, kind, chosen, worlds, label) for kind in ("prompt", self.against)}

    def removed(
        self, found: dict[str, Float[np.ndarray, "world chosen"]], chosen: Index
    ) -> Float[np.ndarray, "world chosen"]:
        """What each world removes of the effect."""
        return self.effect(chosen) - (found["prompt"] - found[self.against])

    def patched(self, chosen: Index, worlds: Sequence[AblatedHeads], label: str) -> Float[np.ndarray, "world chosen"]:
        """Drop in d after patching these heads from the contrast prompt."""
        self.counter.add(label, len(chosen))
        found = self.differences(self._swap(chosen), "prompt", chosen, worlds, label)
        return self.clean["prompt"][chosen] - found

    def triage(
        self, chosen: Index, heads: Sequence[HeadId], against: PromptKind, label: str
    ) -> Float[np.ndarray, " head"]:
        """First-order estimate of the mean of `patched` for every head alone, from one backward pass."""
        self.counter.add(label, len(chosen) * (2 + BACKWARD))
        tokens = [self.reading.tokens["prompt"][one] for one in chosen]
        choices = Choices(first=self.reading.answer["prompt"][chosen], second=self.reading.other["prompt"][chosen])
        sources = [self.reading.tokens[against][one] for one in chosen]
        return -gradients(ActivationPatch.of(self.model, tokens, sources), tokens, choices, heads).mean(1)

    def text_loss(
        self, ablator: Ablator, chosen: Index, heads: AblatedHeads, label: str
    ) -> Float[np.ndarray, " chosen"]:
        """What taking the heads out does to the loss on the words of the prompts without a claim."""
        prompts = self.reading.tokens[self.calm]
        queries = {"text": [np.arange(len(prompt) - 1) for prompt in prompts]}
        found = losses(ablator, prompts, queries, [frozenset(), heads], index=chosen.tolist())["text"]
        self.counter.add(label, 2 * len(chosen))
        return found[1] - found[0]

    def looks(
        self, chosen: Index, label: str
    ) -> tuple[dict[HeadId, Float[np.ndarray, " chosen"]], dict[HeadId, Float[np.ndarray, "chosen d_head"]]]:
        """Each head's attention from the answer's position to the words of the claim, and its z there."""
        prompts = [self.reading.tokens["prompt"][one] for one in chosen]
        places = [
            claim_places(prompt, self.reading.tokens[self.against][one])
            for prompt, one in zip(prompts, chosen, strict=True)
        ]
        attention: dict[HeadId, np.ndarray] = {}
        mixed: dict[HeadId, np.ndarray] = {}
        self.counter.add(label, len(chosen))

        def run(part: Sequence[int]) -> None:
            rows = torch.from_numpy(np.stack([prompts[one] for one in part])).to(self.model.device)
            batch = torch.cat([torch.full((len(places[one]),), row) for row, one in enumerate(part)])
            key = torch.from_numpy(np.concatenate([places[one] for one in part]))
            query = torch.full_like(key, rows.shape[1] - 1)

            def visit(seen: Attention) -> None:
                device = seen.z.device
                at = seen.probabilities(batch.to(device), query.to(device), key.to(device)).cpu()
                summed = torch.zeros(len(part), seen.n_heads, dtype=at.dtype).index_add(0, batch, at)
                last = seen.z[:, -1].float().cpu().numpy()
                for head in range(seen.n_heads):
                    name = HeadId(seen.layer, head)
                    attention.setdefault(name, np.zeros(len(prompts)))[list(part)] = summed[:, head].numpy()
                    kept = mixed.setdefault(name, np.zeros((len(prompts), last.shape[-1]), dtype=np.float32))
                    kept[list(part)] = last[:, head]

            self.model.run(rows, visit, stop_at_last=True)

        for same in same_length(prompts):
            for _ in in_batches(same, prompts_at_once(self.model, len(prompts[same[0]])), run):
                pass
        return attention, mixed

    def corpus(self, chosen: Index, count: int, length: int) -> tuple[Tokens, ...]:
        """Prompts without a claim laid end to end, each row beginning with another and cut at this length."""
        kinds: tuple[PromptKind, ...] = ("neutral",) if self.calm == "neutral" else ("prompt", "twin")
        texts = [self.reading.tokens[kind][one] for one in chosen for kind in kinds]
        start = self.model.bos_token_id
        rows: list[Tokens] = []
        for first in range(min(count, len(texts))):
            row, at = texts[first], first
            while len(row) < length:
                at = (at + 1) % len(texts)
                further = texts[at]
                row = np.concatenate([row, further[1:] if start is not None and further[0] == start else further])
            rows.append(row[:length])
        self.counter.add("reading", len(rows))
        return tuple(rows)

    def _swap(self, chosen: Index) -> ActivationPatch:
        """For the prompts of these pairs; the others' are there by their number alone."""
        prompts, sources = self.reading.tokens["prompt"], self.reading.tokens[self.against]
        some = ActivationPatch.of(self.model, [prompts[one] for one in chosen], [sources[one] for one in chosen])
        return ActivationPatch(model=self.model, sources=sources, n_last=some.n_last)

    def _choices(self, kind: PromptKind) -> Choices:
        return Choices(first=self.reading.answer[kind], second=self.reading.other[kind])


def by_group(values: np.ndarray, groups: Int[np.ndarray, " _chosen"]) -> np.ndarray:
    """Means of the last axis over the places of each group, groups in the order of their first place."""
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    weights = np.zeros((len(groups), len(first)))
    weights[np.arange(len(groups)), order[which]] = 1.0
    return values @ (weights / weights.sum(0))


def _facts(pairs: Sequence[Pair]) -> Int[np.ndarray, " pair"]:
    """The number of each pair's fact: pairs share one where they share their id or every word."""
    numbers: dict[object, int] = {}
    found: list[int] = []
    for pair in pairs:
        keys = (pair.id, (pair.prompt, pair.twin, pair.neutral, pair.answer, pair.other))
        number = next((numbers[key] for key in keys if key in numbers), len(found))
        numbers.update(dict.fromkeys(keys, number))
        found.append(number)
    return np.asarray(found)
