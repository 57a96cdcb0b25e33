"""Ablation: what the loss becomes without some heads.

    delta_loss_nats = loss(ablated) - loss(clean)       positive: the heads helped

z of each named head is replaced, before the output projection, by zero, by its mean over a clean corpus, or by what it
was in another prompt (`headscope.interventions.ablation`). The change is paired by prompt, with its 95% interval. The
first copy's loss is the control: heads that only serve repetition leave it alone.

The three methods answer different questions, and conclusions can depend on the choice. Zero also takes away what a head
always adds, mean leaves that, resample puts in what another text called for. A head whose removal changes nothing may
still matter: another may have taken its place. Ablate sets too.

Cost: one clean pass, one over the corpus, and one from the first ablated layer on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from headscope.errors import ArgumentError, TokenError
from headscope.evidence.scan.result import Timing
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, Method, Queries, losses
from headscope.model.load import Heads, Model, Source, load
from headscope.probes import repeated_tokens
from headscope.probes.copies import copies
from headscope.probes.probe import Tokens, check_fits, probe_of
from headscope.records.codec import encode
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import WrittenDocument

N_PROMPTS = 32
"""Prompts of the default probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossChange:
    """The loss of one kind of token with and without the heads, in nats per token."""

    clean: Estimate
    """With them."""
    ablated: Estimate
    """Without."""
    delta: Estimate
    """Ablated minus clean, paired by prompt."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Ablation(WrittenDocument):
    """What the loss becomes without some heads."""

    schema: ClassVar[str] = "headscope.ablation/1"
    model: ModelInfo
    """Which model."""
    heads: tuple[HeadId, ...]
    """What was taken out, together."""
    method: Method
    """`zero`, `mean` or `resample`."""
    positions: tuple[int, int] | None
    """First position edited and the one after the last; None for all."""
    losses: dict[str, LossChange]
    """`second_copy` and `first_copy` where every prompt repeats itself, and `text`, every token, always."""
    n_prompts: int
    """Prompts scored."""
    probe: dict[str, Any]
    """How the prompts were made."""
    corpus: dict[str, Any] | None
    """How the clean corpus was made; None for `zero`."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""

    @property
    def delta_loss_nats(self) -> Estimate:
        """Change of the loss on `second_copy`, where every prompt holds a pair of tokens twice; else on all tokens."""
        return self.losses["second_copy" if "second_copy" in self.losses else "text"].delta

    def body(self) -> dict[str, Any]:
        """What the document holds: the change of the loss, then the record."""
        return {"delta_loss_nats": encode(self.delta_loss_nats), **encode(self)}

    def __repr__(self) -> str:
        delta = self.delta_loss_nats
        interval = "" if delta.ci95 is None else f" [{delta.ci95[0]:+.3f}, {delta.ci95[1]:+.3f}]"
        where = "the second copy" if "second_copy" in self.losses else "all tokens"
        heads = ", ".join(map(str, self.heads))
        return f"Ablation({heads}: {delta.mean:+.3f}{interval} nats on {where}, {self.method})"


def ablate(
    model: Source,
    heads: Heads,
    *,
    probe: Any | None = None,
    method: Method = "mean",
    corpus: Any | None = None,
    positions: tuple[int, int] | None = None,
    seed: int = 0,
) -> Ablation:
    """Take heads out, all at once, and measure the loss.

    Args:
        model: What `headscope.load` takes, or gives.
        heads: One head or several, like `["L5H1", "4.11"]`, or what `scan.heads("induction")` gives.
        probe: What the model reads; by default 32 prompts of `repeated_tokens(model, seed=seed)`.
        method: `zero`, `mean` or `resample`.
        corpus: For `mean` and `resample`, clean prompts that are not among the probe's and at least as long. By default
            the controls of further prompts, for a probe that can draw them.
        positions: Edit only from the first position to before the second; by default everywhere.
        seed: Of the default probe and of what `resample` draws.

    Raises:
        ArgumentError: heads the model does not have, all heads at once, an unknown method, positions outside the
            prompts, or no corpus for prompts of your own.
        ShapeError: a corpus that is too short.
        TokenError: a prompt does not fit the model, or has a single token.
        UnsupportedModel: the model has no LM head, so that no loss is defined.
        NonFiniteError: a loss is not a number.
    """
    model = load(model)
    chosen = model.named(heads)
    refuse_all(model, chosen)
    probe = repeated_tokens(model, n_prompts=N_PROMPTS, seed=seed) if probe is None else probe_of(model, probe)
    check_fits(probe, model)
    ablator = Ablator.of(model, probe, method=method, corpus=corpus, positions=positions, seed=seed)
    queries = text_queries(probe.prompts)
    split = [copies(prompt) for prompt in probe.prompts]
    if all(len(found.second) and len(found.first) for found in split):
        queries |= {"second_copy": [one.second for one in split], "first_copy": [one.first for one in split]}
    started = time.perf_counter()
    found = losses(ablator, probe.prompts, queries, [frozenset(), frozenset(chosen)])
    return Ablation(
        model=ModelInfo.of(model),
        heads=chosen,
        method=method,
        positions=positions,
        losses={
            kind: LossChange(
                clean=Estimate.of(rows[0]), ablated=Estimate.of(rows[1]), delta=Estimate.of_loss(rows[1] - rows[0])
            )
            for kind, rows in sorted(found.items())
        },
        n_prompts=len(probe.prompts),
        probe=dict(probe.settings),
        corpus=None if ablator.corpus is None else dict(ablator.corpus.settings),
        provenance=Provenance.of(model, kernels=model.check.kernels, seed=seed),
        timing=Timing(wall_s=time.perf_counter() - started, tokens=sum(map(len, probe.prompts))),
    )


def refuse_all(model: Model, heads: Sequence[HeadId]) -> None:
    """Raise ArgumentError when these are all heads of the model."""
    if len({(head.layer, head.head) for head in heads}) == sum(model.check.heads.values()):
        raise ArgumentError(
            f"all {len(heads)} heads of {model.id} are to be ablated, which leaves nothing to compare; name fewer."
        )


def text_queries(prompts: Sequence[Tokens]) -> Queries:
    """Every token but the last of each prompt.

    Raises:
        TokenError: a prompt of a single token, which has no next one.
    """
    short = [index for index, prompt in enumerate(prompts) if len(prompt) < 2]
    if short:
        raise TokenError(f"prompt {short[0]} has a single token, so no next token and no loss; give at least two.")
    return {"text": [np.arange(len(prompt) - 1) for prompt in prompts]}
