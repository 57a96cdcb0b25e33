"""The tables of a store: which columns each kind of measurement has, and its rows.

Each row of `scan`, `verify`, `circuit` and `icl` begins with what it is about: the job, by which it joins with `jobs`,
and the model. `jobs` has one row per job, finished or failed, with everything else that one needs to repeat it.
Columns have fixed types, so that the files of a store always fit together, also those without a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.detectors import DETECTORS
from headscope.errors import ArgumentError
from headscope.evidence.circuit.result import Circuit
from headscope.evidence.icl.measure import InContext
from headscope.evidence.scan.result import COLUMNS, WHOLE, Scan
from headscope.evidence.verify.result import Verification

if TYPE_CHECKING:
    import pyarrow as pa

Result = Scan | Verification | Circuit | InContext

ABOUT = {
    "job": "string",
    "model": "string",
    "revision": "string",
    "content": "string",
    "family": "string",
    "n_parameters": "int64",
    "dtype": "string",
    "support": "string",
}
"""What every row begins with."""

TABLES: dict[str, dict[str, str]] = {
    "scan": {name: "string" if name == "detector" else "int64" if name in WHOLE else "double" for name in COLUMNS},
    "verify": {
        **dict.fromkeys(("layer", "head", "call"), "int64"),
        "verdict": "string",
        **dict.fromkeys(("delta_loss_nats", "ci_low", "ci_high"), "double"),
        "exact": "bool",
        **dict.fromkeys(("q_value", "first_copy", "natural", "put_back", "copying", "copying_eigenvalue"), "double"),
        **dict.fromkeys((one.name for one in DETECTORS), "double"),
        "reasons": "string",
    },
    "circuit": {
        **dict.fromkeys(("sender", "receiver", "input"), "string"),
        **dict.fromkeys(("effect", "share", "q_value", "query_effect", "loss_nats", "k_composition_z"), "double"),
    },
    "icl": {
        **dict.fromkeys(("score", "ci_low", "ci_high"), "double"),
        **dict.fromkeys(("early", "late", "window", "n_windows"), "int64"),
        **dict.fromkeys(("loss_early", "loss_late"), "double"),
        "loss": "list",
        "note": "string",
    },
    "jobs": {
        **dict.fromkeys(("job", "status", "model", "revision", "content", "what", "settings", "dtype"), "string"),
        **dict.fromkeys(("reason", "error", "traceback"), "string"),
        "family": "string",
        **dict.fromkeys(("n_parameters", "n_layers", "n_heads", "n_kv_heads"), "int64"),
        **dict.fromkeys(("support", "support_reason", "device", "kernels"), "string"),
        **dict.fromkeys(("rows", "tokens"), "int64"),
        **dict.fromkeys(("load_s", "wall_s"), "double"),
        **dict.fromkeys(("finished", "host", "versions", "command", "schema"), "string"),
    },
}
"""The columns of each table; all but `jobs` have those of `ABOUT` in front."""


def arrow_schema(table: str) -> pa.Schema:
    """The columns of a table and their types.

    Raises:
        ArgumentError: a store has no such table.
    """
    import pyarrow as pa

    if table not in TABLES:
        raise ArgumentError(f"a store has no table {table!r}; it has {', '.join(TABLES)}.")
    columns = TABLES[table] if table == "jobs" else ABOUT | TABLES[table]
    kinds = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}
    return pa.schema([(name, kinds.get(kind, pa.list_(pa.float64()))) for name, kind in columns.items()])


def rows_of(result: Result) -> list[dict[str, Any]]:
    """A result's rows, without what they are about."""
    if isinstance(result, InContext):
        return [_icl_row(result)]
    frame = result.to_frame()
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _icl_row(result: InContext) -> dict[str, Any]:
    low, high = result.score.ci95 or (None, None)
    settings = result.settings
    return {
        "score": result.score.mean,
        "ci_low": low,
        "ci_high": high,
        **{name: settings[name] for name in ("early", "late", "window", "n_windows")},
        "loss_early": result.loss.at(settings["early"]).mean,
        "loss_late": result.loss.at(settings["late"]).mean,
        "loss": list(result.loss.mean),
        "note": result.note,
    }
