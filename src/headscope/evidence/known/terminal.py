"""Published heads in the terminal: one line for each, with what an atlas says of it and the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headscope.evidence.known.lists import KnownHead
from headscope.render.plain import console as terminal

SAYS = {"agrees": "agrees", "differs": "differs", "not_tested": "not tested"}


def print_known(heads: Sequence[KnownHead], console: Console | None = None) -> None:
    """Print a table of published heads, and how many agree."""
    console = console or terminal()
    tested = any(one.agreement != "not_tested" for one in heads)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("model", "head", "known as", *(["atlas", "why"] if tested else []), "source"):
        table.add_column(name)
    last = ""
    for one in heads:
        name = one.model + (" ?" if one.matched == "shape" else "")
        says = [SAYS[one.agreement], one.why] if tested else []
        source = one.source if one.checked else f"{one.source}, unchecked"
        table.add_row("" if name == last else name, str(one.head), one.called, *says, source)
        last = name
    console.print(table)
    if tested:
        count = Counter(one.agreement for one in heads)
        console.print(Text("; ".join(f"{SAYS[name]}: {count[name]}" for name in SAYS), style="dim"))
    if any(one.matched == "shape" for one in heads):
        console.print(
            Text("? the config has the same numbers; another model of this shape has other heads", style="dim")
        )
