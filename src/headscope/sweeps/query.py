"""Questions to a store in SQL: DuckDB over its tables, read-only, with no way out.

The tables that a question names are read first and given to DuckDB as they are in memory. Then it is shut in: no
file, no network, no extension, no Python variable, and no setting that could be changed back. One SELECT is run; it
sees `scan`, `verify`, `circuit`, `icl` and `jobs`, and nothing else there is.

Memory: the tables that the question names, whole.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false
from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from headscope.errors import ArgumentError, brief
from headscope.sweeps.tables import TABLES

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_SHUT = (
    "SET temp_directory = ''",  # where it would write what does not fit into memory
    "SET enable_external_access = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)


def query(read: Callable[[str], pa.Table], sql: str) -> pd.DataFrame:
    """The answer to one SELECT over a store's tables.

    Args:
        read: Gives a table by its name; called for those that the question names.
        sql: The question.

    Raises:
        ArgumentError: not one SELECT, an error in it, or something that reaches outside of the store.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ArgumentError("a query needs DuckDB; install headscope[sweep].") from error
    try:
        sql.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"the query is not UTF-8 text: {brief(repr(sql))}; write it in UTF-8.") from error
    connection = duckdb.connect(":memory:")
    try:
        try:
            statements = connection.extract_statements(sql)
            if [one.type for one in statements] != [duckdb.StatementType.SELECT]:
                raise ArgumentError("a query is one SELECT over " + ", ".join(TABLES) + "; nothing else is run.")
            for table in TABLES:
                if re.search(rf"\b{table}\b", sql, flags=re.IGNORECASE):
                    connection.register(table, read(table))
            for line in _SHUT:
                connection.execute(line)
            return connection.execute(sql).df()
        except duckdb.Error as error:
            line = " ".join(str(error).split("\nLINE ")[0].split())
            raise ArgumentError(f"the query cannot be answered: {line[:300]}") from error
    finally:
        connection.close()
