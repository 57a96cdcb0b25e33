"""`headscope query`: questions to a store in SQL."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.following import suggest
from headscope.render.plain import say

PLACE = 7
"""Place of the command in the help."""


def query(
    store: Annotated[str, typer.Argument(help="Folder or URL that a sweep filled.")],
    sql: Annotated[str, typer.Argument(help="One SELECT over scan, verify, circuit, icl and jobs.")],
    as_json: options.JSON = False,
) -> None:
    """Ask a store: SQL over all results of its sweeps, read-only.

    Example: `headscope query results/sweep "SELECT model, max(mean) FROM scan WHERE detector = 'induction' GROUP BY 1"`
    """
    from headscope.sweeps.store import open_store

    answer = open_store(store).query(sql)
    if as_json:
        say(answer.to_json(orient="records", indent=1), wrap=False)
        return
    say(answer.to_string(index=False) if len(answer) else "no rows", wrap=False)
    suggest(["mosaic", store], "every model's map, side by side")
