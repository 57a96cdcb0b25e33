"""The tracker inside transformers' `Trainer`.

    trainer = Trainer(..., callbacks=[hs.HeadscopeCallback(every=100)])

Every 100 optimizer steps the main process takes a `Snapshot` and hands its scalars to `Trainer.log`, so they reach the
trainer's log history and whatever else the run reports to: TensorBoard, W&B and so on. The others wait at their next
exchange of gradients.

Training is left as it was: weights come out the same bit for bit with the callback and without. A snapshot that cannot
be taken, as when weights have become NaN, stops nothing; the reason is logged once.
"""

# pyright: reportPrivateUsage=false
from __future__ import annotations

import logging
import sys
import weakref
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainerControl, TrainerState

from headscope.errors import ArgumentError, HeadscopeError
from headscope.evidence.emergence.live import bare
from headscope.evidence.emergence.tracker import Tracker
from headscope.probes import Probe

logger: logging.Logger = logging.getLogger("headscope")


class HeadscopeCallback(TrainerCallback):
    """Logs a snapshot's scalars every so many steps.

    Args:
        every: Optimizer steps from one snapshot to the next, at multiples of it.
        probe: What the model reads; by default the tracker's.
        seed: Of the default probe.

    Raises:
        ArgumentError: every < 1. When training begins: all that `Tracker` raises.
    """

    def __init__(self, *, every: int = 100, probe: Probe | None = None, seed: int = 0) -> None:
        if every < 1:
            raise ArgumentError(f"every={every}; it needs a number of steps from 1 up.")
        self.every: int = every
        self.probe: Probe | None = probe
        self.seed: int = seed
        self.tracker: Tracker | None = None
        self._trainer: weakref.ref[Trainer] | None = None
        self._silent = False

    def on_train_begin(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        """Make the probe. Refuses what cannot be measured before a step is spent."""
        bare(model)  # in each process, so that all of them stop
        self._silent = False
        if not state.is_world_process_zero:
            return
        assert model is not None
        self._trainer = weakref.ref(_calling_trainer())
        tokenizer = processing_class if isinstance(processing_class, PreTrainedTokenizerBase) else None
        self.tracker = Tracker(model, probe=self.probe, seed=self.seed, tokenizer=tokenizer)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure and log, at multiples of `every`."""
        trainer = self._trainer() if self._trainer is not None else None
        if trainer is None or self.tracker is None or state.global_step % self.every:
            return
        try:
            snapshot = self.tracker.measure(step=state.global_step)
        except HeadscopeError as error:
            if not self._silent:
                logger.warning("no head scores at step %d: %s", state.global_step, error)
            self._silent = True
            return
        due = control.should_log
        trainer.log(snapshot.scalars())
        control.should_log = due  # `log` takes it for done, but the loss of this step is still to come


def _calling_trainer() -> Trainer:
    """The `Trainer` whose event this is.

    It hands its callbacks everything but itself. What a callback adds to `logs` in `on_log` would come too late: the
    reporters have read them by then, and the history was written before.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(caller := frame.f_locals.get("self"), Trainer):
            return caller
        frame = frame.f_back
    raise ArgumentError(
        "HeadscopeCallback was not called by a transformers Trainer; in a loop of your own use Tracker."
    )
