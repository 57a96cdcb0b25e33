"""`headscope report`: scan, verification and circuit on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.files import read_text, saving
from headscope.render.plain import say

PLACE = 4
"""Where the command stands in the help."""


@options.opens()
def report(
    opening: options.Opening,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write.", show_default="report.html")
    ] = None,
    natural: Annotated[Path | None, typer.Option(help="Try removals on this text file too.")] = None,
    emergence: Annotated[
        list[Path] | None,
        typer.Option("--emergence", help="Show a run too: what `headscope emergence --out` wrote; repeat it."),
    ] = None,
    behavior: options.BEHAVIOR = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The page's data as one JSON document on stdout; a page only with --out.")
    ] = False,
    seed: options.SEED = 0,
) -> None:
    """All of it on one page: scan, verdicts and circuit in one HTML file that opens with no network.

    Example: `headscope report demo -o results/demo/report.html`
    """
    loaded = opening.opened()
    from headscope.cli.progress import bars
    from headscope.evidence.behavior.result import BehaviorResult
    from headscope.evidence.emergence.measure import Emergence
    from headscope.page.report import report_document, to_json, writable, write_page

    path = writable(out if out is not None else Path("report.html")) if out is not None or not as_json else None
    text = None if natural is None else read_text(natural)
    runs = [Emergence.load(one) for one in emergence or ()]
    behaviors = [BehaviorResult.load(one) for one in behavior or ()]
    with bars() as progress:
        document = report_document(
            loaded, seed=seed, natural=text, emergence=runs, behavior=behaviors, progress=progress
        )
    if path is not None:
        with saving(path):
            write_page(document, path)
    if as_json:
        say(to_json(document))
        return
    say(document["finding"]["sentence"])
    for detail in document["finding"]["details"]:
        say(f"  {detail}")
    if path is not None:
        say(f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
