"""Losses of sets of ablated heads: on held-out prompts, and on natural text. No set is measured twice in a prompt."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
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

FIRST_PROMPTS = 4
"""Held-out prompts in which the other heads of a layer are ablated first: the fewest whose spread says something."""
FEW_PROMPTS = 8
"""Held-out prompts that are enough for a set of heads on which no verdict hangs."""
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
    """Losses of worlds on the held-out prompts: of each in the first few, or in all. No prompt is read twice."""

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

    @property
    def n_prompts(self) -> int:
        """Held-out prompts."""
        return len(self._prompts)

    @property
    def clean(self) -> dict[str, np.ndarray]:
        """The loss with every head, in each prompt, of each kind of token that was read."""
        return {kind: rows for (kind, world), rows in self._found.items() if not world}

    def run(
        self,
        worlds: Sequence[AblatedHeads],
        *,
        natural: Sequence[AblatedHeads] = (),
        base: AblatedHeads = frozenset(),
        n: int | None = None,
    ) -> None:
        """Measure what is not known yet, from the pass of `base`, which says what it costs alone.

        `n` asks for the first prompts only; the others follow if these worlds are asked for without it.
        """
        self._measure(self._ablator, self._prompts[:n], self._queries, worlds, "second_copy", "ablating", base)
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
        missing: dict[int, list[AblatedHeads]] = {}
        for world in dict.fromkeys([frozenset(), *worlds]):
            known = len(self._found.get((kind, world), ()))
            if known < len(prompts):
                missing.setdefault(known, []).append(world)
        done, total = 0, sum(len(some) * (len(prompts) - known) for known, some in missing.items())

        def progress(pairs: int) -> None:
            nonlocal done
            done += pairs
            self._report(label, min(done, total), total)

        for known, some in missing.items():
            unread = range(known, len(prompts))
            start = base
            if not base and frozenset() not in some:
                # Nobody asks for the clean pass: the world that starts last is the one from which the others start.
                start = max(some, key=lambda world: min(head.layer for head in world))
            found: Losses = losses(ablator, prompts, queries, some, index=unread, base=start, progress=progress)
            for name, rows in found.items():
                for world, row in zip(some, rows, strict=True):
                    before = self._found.get((name, world), np.empty(0))
                    self._found[name, world] = np.concatenate([before, row])

    def delta(self, heads: Collection[HeadId], kind: str = "second_copy") -> Float[np.ndarray, " prompt"]:
        """Loss without these heads minus the clean loss, in each prompt that was read without them."""
        rows = self._found[kind, frozenset(heads)]
        return rows - self._found[kind, frozenset()][: len(rows)]

    def over_first_copy(self, heads: Collection[HeadId]) -> Float[np.ndarray, " prompt"]:
        """The change of the second copy's loss minus that of the first's."""
        return self.delta(heads) - self.delta(heads, "first_copy")

    def natural(self, heads: Sequence[HeadId]) -> Estimate | None:
        """The change on natural text; None where there is none."""
        if ("natural", frozenset(heads)) not in self._found:
            return None
        return Estimate.of_loss(self.delta(heads, "natural"))
