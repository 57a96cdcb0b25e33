"""A run's curves as the page draws them: one number per checkpoint, and the phase changes that were found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.errors import ArgumentError
from headscope.records.codec import encode
from headscope.records.common import ModelInfo

if TYPE_CHECKING:
    from headscope.evidence.emergence.measure import Emergence

MEASURES = ("induction", "previous_token", "first_copy_loss_nats", "second_copy_loss_nats")


def run_curves(run: Emergence) -> dict[str, Any]:
    """Of measures of heads the strongest head's, as `Emergence.curve` gives them."""
    return {
        "source": run.source,
        "model": encode(run.model),
        "settings": dict(run.settings),
        "curves": {
            measure: [{"step": step, **encode(value)} for step, value in run.curve(measure)] for measure in MEASURES
        },
        "changes": encode(run.changes),
        "unread": dict(run.unread),
        "provenance": encode(run.provenance),
    }


def refuse_other_runs(info: ModelInfo, runs: list[Emergence]) -> None:
    """A report holds runs of models built like its own; others may differ from it in depth alone, as a control does.

    Raises:
        ArgumentError: a run of a model of another kind, or no run of the model's own depth.
    """
    for run in runs:
        if (run.model.family, run.model.n_heads) != (info.family, info.n_heads):
            raise ArgumentError(
                f"the run {run.source!r} is of a {run.model.family} with {run.model.n_heads} heads a layer and cannot "
                f"go into a report of {info.id}, a {info.family} with {info.n_heads}; only the depth may differ."
            )
    if runs and all(run.model.n_layers != info.n_layers for run in runs):
        depths = ", ".join(str(run.model.n_layers) for run in runs)
        raise ArgumentError(
            f"no run is of the depth of {info.id}, {info.n_layers} layers (given: {depths}); "
            "give its own run too, and others beside it."
        )
