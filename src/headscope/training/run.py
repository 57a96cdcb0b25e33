"""One run of a recipe: train, look at the heads now and then, keep checkpoints, go on after a kill.

    for each phase, for each step:   a batch of every kind, an optimizer step
    every `measure_every` steps:     a look at the heads: one row of the curve
    every `checkpoint_every` steps:  a row and a checkpoint

A run that is killed and started again gives the weights of one that was not, bit for bit, on the same machine with the
same number of CPU threads: weights, optimizer moments and random generator are restored, and looking at
the heads draws nothing. On CUDA, where sums may be taken in another order from one run to the next, it goes on just
so, but the last digits may differ.

The looking itself is the caller's (`headscope.training.watch`), since this part of the package knows no detectors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from headscope.errors import NonFiniteError
from headscope.heads import HeadId
from headscope.records.codec import encode
from headscope.training.checkpoints import RunFolder, State, all_finite
from headscope.training.config import TrainConfig, build_model
from headscope.training.loop import Training
from headscope.training.recipes import Until, phase_sources, seeded_phases, text_material, try_sources


@dataclass(frozen=True, slots=True, kw_only=True)
class Strongest:
    """The head with the highest score for a role."""

    head: HeadId
    """Which head."""
    score: float
    """Its mean score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a look at the model shows, on prompts it never trains on."""

    induction: Strongest
    """The strongest stripe."""
    previous_token: Strongest
    """The strongest previous-token head."""
    first_copy_loss_nats: float | None
    """Loss before anything repeats."""
    second_copy_loss_nats: float
    """Loss of tokens that repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One point of the curve."""

    step: int
    """Optimizer steps done."""
    loss_nats: dict[str, float]
    """Mean training loss by kind of batch since the row before; empty at step 0."""
    figures: Figures
    """What the heads do."""
    wall_s: float
    """Seconds of training so far, looks and checkpoints included, over all restarts."""


Measure = Callable[[PreTrainedModel, int], Figures]
"""Looks at a model after so many steps, and leaves it and every random state as they were."""


def holds(row: Row, until: Until) -> bool:
    """Whether both figures are reached."""
    figures = row.figures
    return figures.induction.score >= until.stripe and figures.second_copy_loss_nats <= until.second_copy_loss_nats


def held_from(rows: Sequence[Row], until: Until) -> int | None:
    """The step from which both figures hold without a break to the last row; None where they do not."""
    first: int | None = None
    for row in rows:
        first = (row.step if first is None else first) if holds(row, until) else None
    return first


def is_done(rows: Sequence[Row], until: Until | None, *, steps: int) -> bool:
    """Whether the last row ends the run."""
    step = rows[-1].step
    if step >= steps or until is None:
        return step >= steps
    first = held_from(rows, until)
    return first is not None and step - first >= until.steps


def run(
    config: TrainConfig,
    out: Path,
    *,
    measure: Callable[[PreTrainedModel, Any | None], Measure],
    on_row: Callable[[Row], None] = lambda row: None,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda step, losses: None,
) -> tuple[PreTrainedModel, tuple[Row, ...], tuple[Path, ...]]:
    """Train, or go on with what the folder holds, or find that it is done.

    Args:
        config: From `train_config`.
        out: Folder of the run.
        measure: Given the model and its tokenizer, gives what looks at it.
        on_row: Called with each row: first those that the folder holds, then new ones.
        on_step: Called after each step with its number and the losses by kind.

    Returns:
        The trained model in evaluation mode, the curve, and the checkpoints by step.

    Raises:
        ArgumentError: the folder holds another run, other files or damaged ones; batches of an impossible shape.
        NonFiniteError: a loss or a weight became NaN or infinite; the message names the step and the last good
            checkpoint.
        HeadscopeError: a file cannot be written; no earlier checkpoint is lost.
    """
    preset = config.preset
    folder = RunFolder(out, config)
    state = folder.resume()
    rows = folder.rewind_log(Row, None if state is None else state.step)
    for row in rows:
        on_row(row)
    model = build_model(config)
    if state is not None:
        folder.load_weights(model, state.step)
    if not rows or not is_done(rows, preset.until, steps=config.steps):
        _Run(config, folder, model, rows, state, on_row, on_step).finish(measure)
    model.eval()
    return model, tuple(rows), tuple(folder.checkpoints())


class _Run:
    """The part of a run that is still to do."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        model: PreTrainedModel,
        rows: list[Row],
        state: State | None,
        on_row: Callable[[Row], None],
        on_step: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self.config, self.folder, self.model, self.rows, self.state = config, folder, model, rows, state
        self.on_row, self.on_step = on_row, on_step
        self.step = 0 if state is None else state.step
        self.losses: dict[str, list[float]] = {}
        self.tokenizer: Any | None = None
        self.began = 0.0

    @property
    def done(self) -> bool:
        """Whether the newest row is the last."""
        return is_done(self.rows, self.config.preset.until, steps=self.config.steps)

    def finish(self, measure: Callable[[PreTrainedModel, Any | None], Measure]) -> None:
        """Train to the end."""
        preset, step = self.config.preset, self.step
        stream = None
        if preset.reads_text:
            self.tokenizer, stream = text_material()
        phases = seeded_phases(preset, seed=self.config.seed, steps=self.config.steps)
        sources = [phase_sources(phase, vocab_size=preset.vocab_size, stream=stream) for phase in phases]
        for some in sources:
            try_sources(some)
        self.look = measure(self.model, self.tokenizer)
        self.began = time.perf_counter() - (0.0 if self.state is None else self.state.wall_s)
        try:
            if self.state is None:
                self._note({})
            end = 0
            for phase, some in zip(phases, sources, strict=True):
                begin, end = end, end + phase.recipe.n_steps
                training = Training(self.model, some, phase.recipe, autocast=self.config.dtype == "bfloat16")
                if self.state is not None and begin < step < end:
                    training.restore(self.state.tensors, step=step - begin)
                self._through(training, end)
        except NonFiniteError as error:
            kept = self.folder.checkpoints()
            last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint"
            raise NonFiniteError(f"training stopped: {str(error).rstrip('.')}; {last}. Try another seed.") from error

    def _through(self, training: Training, end: int) -> None:
        """The rest of a phase."""
        config, every = self.config, (self.config.preset.measure_every, self.config.checkpoint_every)
        self.model.train()
        while self.step < end and not self.done:
            try:
                losses = training.advance()
            except NonFiniteError as error:
                raise NonFiniteError(f"at step {self.step + 1} {error}") from error
            self.step += 1
            for kind, loss in losses.items():
                self.losses.setdefault(kind, []).append(loss)
            self.on_step(self.step, losses)
            if self.step == config.steps or any(self.step % one == 0 for one in every):
                self._note(training.state())

    def _note(self, tensors: Mapping[str, Tensor]) -> None:
        """A row, and a checkpoint where one is due."""
        if not all_finite(self.model):
            raise NonFiniteError(f"after step {self.step} the weights are no longer finite")
        row = Row(
            step=self.step,
            loss_nats={kind: sum(some) / len(some) for kind, some in self.losses.items()},
            figures=self.look(self.model, self.step),
            wall_s=self._wall_s(),
        )
        self.losses = {}
        self.rows.append(row)
        self.folder.append(encode(row))
        if self.step % self.config.checkpoint_every == 0 or self.done:
            self.folder.save(self.model, self.tokenizer, State(step=self.step, wall_s=self._wall_s(), tensors=tensors))
        self.on_row(row)

    def _wall_s(self) -> float:
        return time.perf_counter() - self.began
