"""Losses of sets of ablated heads, each set measured once: on held-out prompts, and on natural text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from headscope.errors import TokenError
from headscope.heads import HeadId
from headscope.interventions.ablation import AblatedHeads, Ablator, Losses, Method, Queries, losses
from headscope.model.load import Model
from headscope.model.tokenizer import tokenizing
from headscope.probes import Probe
from headscope.probes.copies import check_repeats
from headscope.probes.probe import Tokens
from headscope.records.common import Estimate

OTHERS_PROMPTS = 8
"""Held-out prompts in which the other heads of a layer are ablated."""
WINDOW = 128
"""Tokens in a window of natural text."""
MAX_WINDOWS = 64
"""Windows of it that are read; half of them are the clean corpus."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NaturalText:
    """Natural text to try removals on: its own windows, and an ablator whose clean corpus is other windows."""

    ablator: Ablator
    prompts: tuple[Tokens, ...]
    queries: Queries

    @classmethod
    def of(cls, model: Model, text: str, method: Method, seed: int) -> NaturalText:
        """Windows of a text: every other one to score, the rest as the clean corpus.

        Raises:
            TokenError: the text is too short, or the model has no tokenizer.
        """
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


class Trial:
    """Losses of worlds on the held-out prompts, each world measured once."""

    def __init__(
        self, *, ablator: Ablator, probe: Probe, text: NaturalText | None, report: Callable[[str, int, int], None]
    ) -> None:
        split = check_repeats(probe.prompts)
        self._ablator, self._prompts, self._text, self._report = ablator, probe.prompts, text, report
        self._queries: Queries = {
            "second_copy": [one.second for one in split],
            "first_copy": [one.first for one in split],
        }
        self._found: dict[tuple[str, AblatedHeads], np.ndarray] = {}
        self._few: dict[AblatedHeads, np.ndarray] = {}
        self.clean: dict[str, np.ndarray] = {}

    def run(
        self,
        worlds: Sequence[AblatedHeads],
        *,
        natural: Sequence[AblatedHeads] = (),
        base: AblatedHeads = frozenset(),
    ) -> None:
        """Measure what is not known yet, from the pass of `base`, which says what it costs alone."""
        self._measure(self._ablator, self._prompts, self._queries, worlds, "second_copy", "ablating", base)
        if self._text is not None:
            text = self._text
            self._measure(text.ablator, text.prompts, text.queries, natural, "natural", "reading text")

    def _measure(
        self,
        ablator: Ablator,
        prompts: Sequence[Tokens],
        queries: Queries,
        worlds: Sequence[AblatedHeads],
        kind: str,
        label: str,
        base: AblatedHeads = frozenset(),
    ) -> None:
        missing = [world for world in dict.fromkeys([frozenset(), *worlds]) if (kind, world) not in self._found]
        if not missing:
            return
        done, total = 0, len(missing) * len(prompts)

        def progress(pairs: int) -> None:
            nonlocal done
            done += pairs
            self._report(label, min(done, total), total)

        found: Losses = losses(ablator, prompts, queries, missing, base=base, progress=progress)
        for name, rows in found.items():
            self._found |= {(name, world): row for world, row in zip(missing, rows, strict=True)}
            self.clean[name] = self._found[name, frozenset()]

    def run_few(self, worlds: Sequence[AblatedHeads]) -> None:
        """Second minus first copy's change in each of a few prompts."""
        index = range(min(OTHERS_PROMPTS, len(self._prompts)))
        worlds = [world for world in dict.fromkeys(worlds) if world not in self._few]
        for world in [world for world in worlds if ("second_copy", world) in self._found]:
            self._few[world] = (self.delta(list(world)) - self.delta(list(world), "first_copy"))[: len(index)]
        missing = [world for world in worlds if world not in self._few]
        if not missing:
            return
        found = losses(self._ablator, self._prompts, self._queries, missing, index=index)
        for world, second, first in zip(missing, found["second_copy"], found["first_copy"], strict=True):
            clean = self.clean["second_copy"] - self.clean["first_copy"]
            self._few[world] = second - first - clean[: len(index)]

    def few(self, head: HeadId) -> Float[np.ndarray, " prompt"]:
        """What `run_few` found for one head."""
        return self._few[frozenset([head])]

    def delta(self, heads: set[HeadId] | Sequence[HeadId], kind: str = "second_copy") -> Float[np.ndarray, " prompt"]:
        """Loss without these heads minus the clean loss, in each prompt."""
        return self._found[kind, frozenset(heads)] - self.clean[kind]

    def natural(self, heads: Sequence[HeadId]) -> Estimate | None:
        """The same on natural text; None where there is none."""
        if ("natural", frozenset(heads)) not in self._found:
            return None
        return Estimate.of_loss(self.delta(heads, "natural"))
