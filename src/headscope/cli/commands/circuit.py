"""`headscope circuit`: who tells the induction head where to look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.files import check_out, save
from headscope.cli.following import suggest
from headscope.errors import ArgumentError
from headscope.render.plain import say

PLACE = 3
"""Place of the command in the help."""


@options.opens()
def circuit(
    opening: options.Opening,
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="Explain this head, like L5H1; repeat it. No verification then.")
    ] = None,
    n_prompts: Annotated[
        int, typer.Option(help="Random prompts to draw, each clean and corrupt; senders are searched in the first 32.")
    ] = 128,
    period: Annotated[
        int | None, typer.Option(help="Length of the repeated run, at least 3; by default 24, or what fits.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write circuit.json and circuit.svg here.")] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
) -> None:
    """Who feeds whom: the heads that tell an induction head where to look, by exact path patching.

    Example: `headscope circuit demo --out results/demo`
    """
    if n_prompts < 2:
        raise ArgumentError(f"--n-prompts {n_prompts}; a circuit needs intervals, and an interval at least 2 prompts.")
    check_out(out)
    loaded = opening.opened()
    from headscope.cli.progress import bars
    from headscope.evidence.circuit.measure import PERIOD, trace_circuit
    from headscope.evidence.circuit.terminal import print_circuit
    from headscope.probes import repeated_tokens
    from headscope.probes.repeated import fitting_period

    with bars() as progress:
        found = trace_circuit(
            loaded,
            heads or None,
            probe=repeated_tokens(
                loaded,
                n_prompts=n_prompts,
                period=period if period is not None else fitting_period(loaded, PERIOD),
                seed=seed,
            ),
            seed=seed,
            progress=progress,
        )
    saved = save(found, out)
    if as_json:
        say(found.to_json(), wrap=False)
        return
    print_circuit(found)
    if saved:
        say(f"Results: {saved[0]} and {saved[1]}")
    taken = [] if out is None else ["--from", out]
    suggest(["report", *opening.words(), *taken], "all of it on one page")
