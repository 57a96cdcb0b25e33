"""The scan as a kind of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.evidence.kinds import Kind, Sweepable, table_of

if TYPE_CHECKING:
    from headscope.evidence.scan.result import Scan
    from headscope.model.load import Model


def _result() -> type[Scan]:
    from headscope.evidence.scan.result import Scan

    return Scan


def _measure(model: Model, *, seed: int, **drawn: Any) -> Scan:
    from headscope.evidence.scan.measure import scan
    from headscope.probes import repeated_tokens

    return scan(model, probe=repeated_tokens(model, **drawn, seed=seed))


KIND = Kind(
    name="scan",
    order=10,
    schema="headscope.scan/1",
    result=_result,
    sweep=Sweepable(
        settings={"n_prompts": 32, "period": 50, "n_repeats": 2, "jitter": True, "seed": 0},
        measure=_measure,
        columns={
            **table_of(("layer", "head", "call"), "int64"),
            "detector": "string",
            **table_of(("mean", "ci_low", "ci_high", "chance", "control"), "double"),
            **table_of(("selectivity", "selectivity_low", "selectivity_high"), "double"),
            "n_prompts": "int64",
        },
    ),
)
