"""`headscope behavior`: how strong a behaviour is, which heads carry it, and what speaks against that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.files import check_out, save
from headscope.cli.following import suggest
from headscope.render.plain import say

PLACE = 11
"""Place of the command in the help."""


@options.opens()
def behavior(
    opening: options.Opening,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="`sycophancy`, `praise_agreement`, a file of pairs, hub:NAME.")
    ],
    top: Annotated[int, typer.Option(help="Heads that pass the triage, to be ablated and patched.", min=1)] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write behavior.json and behavior.parquet here.")
    ] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
) -> None:
    """How strong a behaviour is, which heads carry it, and what speaks against that: `sycophancy`, or pairs of yours.

    Example: `headscope behavior sycophancy demo --out results/demo`
    """
    check_out(out)
    loaded = opening.opened()
    from headscope.cli.progress import bars
    from headscope.evidence.behavior.search import behavior as run

    with bars() as progress:
        result = run(name, loaded, top=top, seed=seed, progress=progress)
    saved = save(result, out)
    if as_json:
        say(result.to_json(), wrap=False)
        return
    from headscope.evidence.behavior.terminal import print_behavior

    print_behavior(result)
    if saved:
        say(f"Results: {saved[0]} and {saved[1]}")
    shown = ["report", *opening.words(), "--behavior", out] if out else ["explore", *opening.words()]
    suggest(shown, "it on a page, beside the other evidence" if out else "switch these heads off on a prompt of yours")
