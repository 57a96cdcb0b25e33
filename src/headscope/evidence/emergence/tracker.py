"""The tracker: one model measured again and again on one probe, in the middle of its training.

    tracker = hs.Tracker(model)
    for step in range(n_steps):
        ...
        if step % 100 == 0:
            log(tracker.measure(step=step).scalars())

The probe is made once, so that two snapshots differ by the weights alone. Scores are those of `hs.scan` for that probe,
to the last digit; losses are those of the tokens that the probe's repetition predicts (`second_copy`) and of the
tokens before it (`first_copy`). The model is left as it was (`headscope.evidence.emergence.live`).

Cost of a snapshot: the scan's pass over prompts and controls, without the last MLP and the unembedding, and a full pass
over the prompts that unembeds only the tokens asked for. With the default probe of 8 prompts of 73 tokens that is
1,752 tokens forward; a training step costs three forward passes over its batch. `full` adds the in-context-learning
score, one pass over up to 32 windows of 512 tokens, and reads the weights of every head (`headscope.model.weights`) for
copying and K-composition.

It misleads where random tokens do: a head that serves text alone stays unseen. The default probe is smaller than that
of `hs.scan`, so scores differ a little from a scan's default; give both the same probe to compare.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from headscope.errors import ArgumentError, ModelError, NonFiniteError, TokenError, UnsupportedModel
from headscope.evidence.composition.measure import composition
from headscope.evidence.composition.result import Composition, HeadPair
from headscope.evidence.copying import Copying, TokenSpace
from headscope.evidence.emergence.live import bare, untouched
from headscope.evidence.icl.measure import icl
from headscope.evidence.scan.measure import scan
from headscope.evidence.scan.result import HeadScore, Timing
from headscope.heads import ranking
from headscope.interventions.ablation import Ablator, losses
from headscope.model.load import Model, Source, load
from headscope.probes import Probe, repeated_tokens
from headscope.probes.copies import check_repeats
from headscope.probes.repeated import fitting_period
from headscope.records.common import Estimate, ModelInfo, Provenance
from headscope.records.document import Document

SCHEMA = "headscope.snapshot/1"
ROLES = ("induction", "previous_token")
N_PROMPTS, PERIOD = 8, 24
"""Of the default probe: small enough for a call to cost less than a step of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """What is read besides attention and loss."""

    in_context: Estimate | None
    """In-context-learning score on text, in nats; negative is good."""
    copying: tuple[Copying, ...]
    """Along the direct path, one for each head; empty where weights cannot be assigned to heads."""
    composition: tuple[HeadPair, ...]
    """K-composition of each head with the earlier head that it reads most of, where there is one."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Snapshot(Document):
    """A model at one step of its training."""

    schema: ClassVar[str] = SCHEMA
    step: int
    """Steps of training done, as the caller counts them."""
    model: ModelInfo
    """Which model."""
    probe: dict[str, Any]
    """How the prompts were made."""
    heads: tuple[HeadScore, ...]
    """Induction and previous-token scores of every head, as `hs.scan` gives them for this probe."""
    first_copy_loss_nats: Estimate | None
    """Mean loss of tokens before anything is predictable; None with a reason in `missing`."""
    second_copy_loss_nats: Estimate | None
    """Mean loss of predictable tokens; falls as induction appears."""
    full: Full | None
    """What `measure(full=True)` adds."""
    missing: dict[str, str]
    """What has no number here, and why."""
    provenance: Provenance
    """How to repeat it."""
    timing: Timing
    """What it cost."""

    def strongest(self, role: str = "induction") -> HeadScore:
        """The head with the highest score for `induction` or `previous_token`.

        Raises:
            ArgumentError: it was not scored.
        """
        scores = [score for score in self.heads if score.detector == role]
        if not scores:
            raise ArgumentError(f"there is no score for {role!r}: {self.missing.get(role, 'the tracker has no such')}.")
        return min(scores, key=lambda score: ranking(score.mean, score.head))

    def scalars(self) -> dict[str, float]:
        """What a dashboard plots, by name: the strongest score of each role, and the losses."""
        roles = [role for role in ROLES if role not in self.missing]
        found = {f"{role}_max": self.strongest(role).mean for role in roles}
        for name in ("first_copy_loss_nats", "second_copy_loss_nats"):
            if (loss := getattr(self, name)) is not None:
                found[name] = loss.mean
        if self.full is not None:
            if self.full.in_context is not None:
                found["in_context_nats"] = self.full.in_context.mean
            if self.full.copying:
                found["copying_max"] = max(one.direct.mean for one in self.full.copying)
            if self.full.composition:
                found["k_composition_max"] = max(pair.score for pair in self.full.composition)
        return {f"headscope/{name}": value for name, value in found.items()}

    def __repr__(self) -> str:
        shown = [f"{name.removeprefix('headscope/')} {value:.3f}" for name, value in self.scalars().items()]
        return f"Snapshot(step {self.step}: {', '.join(shown)})"


class Tracker:
    """Measures one model on one probe, as often as asked. The weights may change in between; nothing else does.

    Args:
        model: What `headscope.load` takes, or gives; also inside DistributedDataParallel or torch.compile. It may be in
            training mode and stays in it.
        probe: What the model reads each time; by default 8 prompts of `repeated_tokens` with a period of 24.
        seed: Of the default probe.
        tokenizer: Of a model object that comes without; the default probe leaves out its special tokens.

    Raises:
        ModelError: parameters that are spread over processes, and all that `headscope.load` raises.
        ShapeError: the default probe does not fit the model's context or vocabulary.
    """

    def __init__(
        self,
        model: Source,
        *,
        probe: Probe | None = None,
        seed: int = 0,
        tokenizer: Any | None = None,
    ) -> None:
        inner = bare(model)
        with untouched(inner):
            self.model: Model = load(inner, tokenizer=tokenizer)
        self.seed = seed
        if probe is None:
            probe = repeated_tokens(
                self.model, n_prompts=N_PROMPTS, period=fitting_period(self.model, PERIOD), seed=seed
            )
        self.probe = probe

    def measure(self, *, step: int, full: bool = False) -> Snapshot:
        """Look at the model as it is now.

        Args:
            step: Steps of training done; kept, not used.
            full: Also the in-context-learning score, copying and K-composition, which cost more.

        Raises:
            NonFiniteError: a score or loss is NaN or infinite.
            MemoryRanOut: memory runs out with a single prompt.
            ModelError: parameters that have meanwhile been spread over processes.
        """
        bare(self.model.hf)
        started = time.perf_counter()
        tokens = self.probe.n_tokens
        with untouched(self.model.hf):
            self.model = load(self.model)
            found = scan(self.model, probe=self.probe, detectors=list(ROLES))
            missing = dict(found.unscored)
            copies = self._losses(missing)
            tokens += sum(map(len, self.probe.prompts)) if copies else 0
            added = self._full(missing) if full else None
        return Snapshot(
            step=step,
            model=found.model,
            probe=found.probe,
            heads=found.scores,
            first_copy_loss_nats=copies.get("first_copy"),
            second_copy_loss_nats=copies.get("second_copy"),
            full=added,
            missing=missing,
            provenance=found.provenance,
            timing=Timing(wall_s=time.perf_counter() - started, tokens=tokens),
        )

    def _losses(self, missing: dict[str, str]) -> dict[str, Estimate]:
        prompts = self.probe.prompts
        try:
            split = check_repeats(prompts)
            queries = {"second_copy": [one.second for one in split]}
            if all(len(one.first) for one in split):
                queries["first_copy"] = [one.first for one in split]
            else:
                missing["first_copy_loss_nats"] = "a prompt repeats from its first token on"
            clean = losses(Ablator.of(self.model, self.probe, method="zero"), prompts, queries, [frozenset()])
        except (TokenError, UnsupportedModel) as error:
            missing |= dict.fromkeys(("first_copy_loss_nats", "second_copy_loss_nats"), str(error))
            return {}
        return {kind: Estimate.of(rows[0]) for kind, rows in clean.items()}

    def _full(self, missing: dict[str, str]) -> Full:
        in_context: Estimate | None = None
        copying: tuple[Copying, ...] = ()
        pairs: tuple[HeadPair, ...] = ()
        try:
            in_context = icl(self.model, seed=self.seed).score
        except NonFiniteError:
            raise
        except (ArgumentError, ModelError) as error:
            missing["in_context"] = str(error)
        try:
            circuits = TokenSpace(self.model, seed=self.seed)
            copying = tuple(circuits.copying([head]) for head in self.model.heads)
            pairs = _strongest_senders(composition(self.model, ["k"]))
        except UnsupportedModel as error:
            missing |= dict.fromkeys(("copying", "composition"), str(error))
        return Full(in_context=in_context, copying=copying, composition=pairs)


def _strongest_senders(found: Composition) -> tuple[HeadPair, ...]:
    """For each head that reads from an earlier one, the sender with the highest k-score."""
    scores = found.scores["k"]
    receivers = [int(one) for one in np.flatnonzero(np.isfinite(scores).any(axis=0))]
    senders = [int(one) for one in np.nanargmax(scores[:, receivers].round(6), axis=0)] if receivers else []
    return tuple(
        found.pair(found.heads[sender], found.heads[receiver], "k")
        for sender, receiver in zip(senders, receivers, strict=True)
    )
