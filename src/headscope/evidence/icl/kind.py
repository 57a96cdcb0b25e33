"""The in-context-learning score as a kind of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.evidence.kinds import Kind, Sweepable, table_of

if TYPE_CHECKING:
    from headscope.evidence.icl.measure import InContext
    from headscope.model.load import Model


def _result() -> type[InContext]:
    from headscope.evidence.icl.measure import InContext

    return InContext


def _measure(model: Model, **settings: Any) -> InContext:
    from headscope.evidence.icl.measure import icl

    return icl(model, **settings)


def _rows(result: InContext) -> list[dict[str, Any]]:
    low, high = result.score.ci95 or (None, None)
    settings = result.settings
    row = {
        "score": result.score.mean,
        "ci_low": low,
        "ci_high": high,
        **{name: settings[name] for name in ("early", "late", "window", "n_windows")},
        "loss_early": result.loss.at(settings["early"]).mean,
        "loss_late": result.loss.at(settings["late"]).mean,
        "loss": list(result.loss.mean),
        "note": result.note,
    }
    return [row]


KIND = Kind(
    name="icl",
    order=40,
    schema="headscope.icl/1",
    result=_result,
    sweep=Sweepable(
        settings={"n_windows": 32, "window": None, "early": None, "late": None, "seed": 0},
        measure=_measure,
        columns={
            **table_of(("score", "ci_low", "ci_high"), "double"),
            **table_of(("early", "late", "window", "n_windows"), "int64"),
            **table_of(("loss_early", "loss_late"), "double"),
            "loss": "list",
            "note": "string",
        },
        rows=_rows,
    ),
)
