"""`headscope report`: scan, verification and circuit on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.files import read_text, saving
from headscope.cli.following import suggest
from headscope.cli.progress import announce
from headscope.errors import ArgumentError
from headscope.render.plain import say

PLACE = 4
"""Place of the command in the help."""


@options.opens()
def report(
    opening: options.Opening,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write.", show_default="report.html")
    ] = None,
    saved: Annotated[
        Path | None, typer.Option("--from", help="Take what a command's --out wrote in this folder; measure the rest.")
    ] = None,
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="Judge only this head, like L5H1; repeat it.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(help="Number of top heads to measure exactly.", min=1, show_default="10")
    ] = None,
    n_prompts: Annotated[
        int | None, typer.Option(help="Random prompts of each measurement; by default 32, in the circuit 128.")
    ] = None,
    period: Annotated[
        int | None,
        typer.Option(help="Length of the repeated run, at least 3; by default 50, in the circuit 24, or what fits."),
    ] = None,
    natural: Annotated[
        Path | None, typer.Option("--text", "--natural", help="Try removals on this text file too.")
    ] = None,
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

    Example: `headscope report demo -o results/demo/report.html`, or, of results that are there,
    `headscope report demo --from results/demo`
    """
    if n_prompts is not None and n_prompts < 2:
        raise ArgumentError(f"--n-prompts {n_prompts}; verdicts need intervals, and an interval at least 2 prompts.")
    announce(f"{opening.model}: scan, verify and circuit, then the page; the model is opened first")
    loaded = opening.opened()
    from headscope.cli.progress import bars
    from headscope.evidence.behavior.result import BehaviorResult
    from headscope.evidence.emergence.measure import Emergence
    from headscope.page.report import report_document, to_json, writable, write_page
    from headscope.page.saved import ready

    path = writable(out if out is not None else Path("report.html")) if out is not None or not as_json else None
    given = {} if saved is None else ready(saved)
    text = None if natural is None else read_text(natural)
    given["emergence"] = [*given.get("emergence", []), *(Emergence.load(one) for one in emergence or ())]
    given["behavior"] = [*given.get("behavior", []), *(BehaviorResult.load(one) for one in behavior or ())]
    with bars() as progress:
        document = report_document(
            loaded,
            seed=seed,
            natural=text,
            heads=heads or None,
            n_prompts=n_prompts,
            period=period,
            top=top,
            progress=progress,
            **given,
        )
    if path is not None:
        with saving(path):
            write_page(document, path)
    if as_json:
        say(to_json(document), wrap=False)
        return
    say(document["finding"]["sentence"])
    for detail in document["finding"]["details"]:
        say(f"  {detail}")
    if path is not None:
        say(f"Report: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    suggest(["explore", *opening.words()], "the same page, live on your own prompt")
