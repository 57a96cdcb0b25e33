"""The tables of a store: the columns of each kind of evidence, and of its jobs.

Each row of a kind of evidence begins with what it is about: the job, by which it joins with `jobs`,
and the model. `jobs` has one row per job, finished or failed, with everything else that one needs to repeat it.
Columns have fixed types, so that the files of a store always fit together, also those without a row.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.errors import ArgumentError
from headscope.evidence.kinds import sweepable

if TYPE_CHECKING:
    import pyarrow as pa

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
    **{name: dict(kind.columns) for name, kind in sweepable().items()},
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
