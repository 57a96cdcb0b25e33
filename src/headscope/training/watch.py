"""Train a small model by a recipe, and watch induction appear.

    trained = hs.train("copy", out="runs/copy")
    trained.curve[-1].figures.induction      # Strongest(head=L1H2, score=0.96)
    hs.scan(trained.checkpoints[-1])

The recipes are data (`headscope.training.recipes`), the loop with its checkpoints is `headscope.training.run`, and the
looks are those of `headscope.Tracker` on the default probe of `hs.scan`: the strongest stripe of a row is what a scan
of that checkpoint shows, to the last digit. Where the vocabulary is too small for its period, the longest that fits is
used.

Cost of a look: two to three training steps of the `copy` recipe; there is one every 25 steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedModel

from headscope.evidence.emergence.tracker import Snapshot, Tracker
from headscope.evidence.scan.result import THRESHOLD, HeadScore
from headscope.model.load import Model, load
from headscope.probes import Probe, repeated_tokens
from headscope.records.codec import decode, encode
from headscope.records.common import ModelInfo, Provenance
from headscope.records.document import Document
from headscope.training.config import TrainConfig, train_config
from headscope.training.run import Figures, Measure, Row, Strongest, held_from, run


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Trained(Document):
    """A finished run."""

    schema: ClassVar[str] = "headscope.train/1"
    config: TrainConfig
    """What was trained."""
    model: ModelInfo
    """The trained model."""
    probe: dict[str, Any]
    """How the prompts were made that every row was measured on."""
    curve: tuple[Row, ...]
    """From before the first step to after the last."""
    held_from: int | None
    """First step from which the recipe's two figures held to the end; None where they do not, or it names none."""
    out: str
    """Folder of the run."""
    checkpoints: tuple[str, ...]
    """Names of the checkpoints in it, by step."""
    provenance: Provenance
    """How to repeat it."""

    @property
    def final(self) -> Row:
        """The last row."""
        return self.curve[-1]

    @property
    def learned(self) -> str:
        """What came out, in a sentence or two."""
        return _learned(self.final)

    def body(self) -> dict[str, Any]:
        """What the document holds: the record, then its last row and what that says."""
        return {**encode(self), "final": encode(self.final), "learned": self.learned}

    @classmethod
    def of_body(cls, body: dict[str, Any]) -> Trained:
        """The record; its last row and what that says are its own.

        Raises:
            ArgumentError: the body is damaged.
        """
        return decode(cls, {name: value for name, value in body.items() if name not in ("final", "learned")})

    def __repr__(self) -> str:
        return f"Trained({self.config.recipe}, step {self.final.step}: {self.learned})"


def train(
    recipe: str = "copy",
    *,
    out: str | Path | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda step, losses: None,
    **settings: Any,
) -> Trained:
    """Train a small attention-only model, keep its checkpoints, and watch its heads.

    Called again with the same arguments it goes on with what the folder holds: after a kill the weights come out as
    they would have, bit for bit, on one machine's CPU with the same number of threads.

    Args:
        recipe: `copy`, `code`, `mixed` or `bigram`.
        out: Folder of the run; by default one under `runs/` named after recipe, layers and seed.
        on_row: Called with each row of the curve, first with those that the folder holds.
        on_step: Called after each step with its number and its losses.
        settings: `layers`, `heads`, `d_model`, `positions`, `seed`, `steps`, `checkpoint_every`, `device`, `dtype`; the
            rest is the recipe's own.

    Raises:
        ArgumentError: a setting that is none, or a shape that cannot be; a folder that holds another run.
        NonFiniteError: a loss became NaN; the message names the step and the last good checkpoint.
        HeadscopeError: a file cannot be written; no earlier checkpoint is lost.
    """
    config = train_config(recipe=recipe, **settings)
    folder = default_folder(config) if out is None else Path(out)
    model, rows, checkpoints = run(config, folder, measure=_measure, on_row=on_row, on_step=on_step)
    loaded = load(model)
    probe = _probe(loaded)
    until = config.preset.until
    return Trained(
        config=config,
        model=ModelInfo.of(loaded),
        probe=dict(probe.settings),
        curve=rows,
        held_from=None if until is None else held_from(rows, until),
        out=str(folder),
        checkpoints=tuple(path.name for path in checkpoints),
        provenance=Provenance.of(loaded, kernels=(), seed=probe.settings["seed"]),
    )


def default_folder(config: TrainConfig) -> Path:
    """The folder of a run for which the caller names none."""
    layers = "1-layer" if config.layers == 1 else f"{config.layers}-layers"
    return Path("runs") / f"{config.recipe}-{layers}-seed-{config.seed}"


def _measure(model: PreTrainedModel, tokenizer: Any | None) -> Measure:
    """A tracker on the default probe of `hs.scan`."""
    loaded = load(model, tokenizer=tokenizer)
    tracker = Tracker(loaded, probe=_probe(loaded))
    return lambda model, step: _figures(tracker.measure(step=step))


def _probe(model: Model) -> Probe:
    """The default probe; a run and its control need 2.5 periods of different tokens."""
    return repeated_tokens(model, period=min(50, (model.n_embeddings - 1) * 2 // 5))


def _figures(snapshot: Snapshot) -> Figures:
    first, second = snapshot.first_copy_loss_nats, snapshot.second_copy_loss_nats
    assert second is not None, "a probe of repeated tokens has a second copy"
    return Figures(
        induction=_strongest(snapshot.strongest("induction")),
        previous_token=_strongest(snapshot.strongest("previous_token")),
        first_copy_loss_nats=None if first is None else first.mean,
        second_copy_loss_nats=second.mean,
    )


def _strongest(score: HeadScore) -> Strongest:
    return Strongest(head=score.head, score=score.mean)


def _learned(row: Row) -> str:
    stripe, previous, loss = row.figures.induction, row.figures.previous_token, row.figures.second_copy_loss_nats
    if stripe.score < THRESHOLD:
        return (
            f"No head attends like an induction head after {row.step} steps: the best is {stripe.head} with "
            f"{stripe.score:.2f}; second copy {loss:.2f} nats."
        )
    before = (
        f" {previous.head} looks at the previous token, {previous.score:.2f}." if previous.score >= THRESHOLD else ""
    )
    return f"{stripe.head} attends like an induction head, {stripe.score:.2f}; second copy {loss:.2f} nats.{before}"
