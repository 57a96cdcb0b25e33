"""The verification as a kind of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.detectors import DETECTORS
from headscope.evidence.kinds import Kind, Sweepable, table_of

if TYPE_CHECKING:
    from headscope.evidence.verify.result import Verification
    from headscope.model.load import Model


def _result() -> type[Verification]:
    from headscope.evidence.verify.result import Verification

    return Verification


def _measure(model: Model, *, n_prompts: int, period: int, seed: int, **settings: Any) -> Verification:
    from headscope.evidence.verify.measure import verify
    from headscope.probes import repeated_tokens

    probe = repeated_tokens(model, n_prompts=n_prompts, period=period, seed=seed)
    return verify(model, probe=probe, seed=seed, **settings)


KIND = Kind(
    name="verify",
    order=20,
    schema="headscope.verify/1",
    result=_result,
    sweep=Sweepable(
        settings={"n_prompts": 32, "period": 50, "ablation": "mean", "search": "race", "top": 10, "seed": 0},
        measure=_measure,
        columns={
            **table_of(("layer", "head", "call"), "int64"),
            "verdict": "string",
            **table_of(("delta_loss_nats", "ci_low", "ci_high"), "double"),
            "exact": "bool",
            **table_of(("q_value", "first_copy", "natural", "put_back", "copying", "copying_eigenvalue"), "double"),
            **table_of((one.name for one in DETECTORS), "double"),
            "reasons": "string",
        },
    ),
)
