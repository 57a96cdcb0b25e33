"""The circuit as a kind of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.evidence.kinds import Kind, Sweepable, table_of

if TYPE_CHECKING:
    from headscope.evidence.circuit.result import Circuit
    from headscope.model.load import Model


def _result() -> type[Circuit]:
    from headscope.evidence.circuit.result import Circuit

    return Circuit


def _measure(model: Model, *, n_prompts: int, period: int, seed: int) -> Circuit:
    from headscope.evidence.circuit.measure import trace_circuit
    from headscope.probes import repeated_tokens

    probe = repeated_tokens(model, n_prompts=n_prompts, period=period, seed=seed)
    return trace_circuit(model, probe=probe, seed=seed)


KIND = Kind(
    name="circuit",
    order=30,
    schema="headscope.circuit/1",
    result=_result,
    sweep=Sweepable(
        settings={"n_prompts": 128, "period": 24, "seed": 0},
        measure=_measure,
        columns={
            **table_of(("sender", "receiver", "input"), "string"),
            **table_of(("effect", "share", "q_value", "query_effect", "loss_nats", "k_composition_z"), "double"),
        },
    ),
)
