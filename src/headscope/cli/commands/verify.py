"""`headscope verify`: which heads matter, and what each one is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.files import check_out, read_text, save
from headscope.cli.following import suggest
from headscope.errors import ArgumentError
from headscope.render.plain import say

PLACE = 2
"""Place of the command in the help."""


@options.opens()
def verify(
    opening: options.Opening,
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="Judge only this head, like L5H1; repeat it.")
    ] = None,
    top: Annotated[int, typer.Option(help="Number of top heads to measure exactly and print.", min=1)] = 10,
    ablation: Annotated[str, typer.Option(help="mean, zero or resample.")] = "mean",
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Ablate every head in every prompt; no race.")
    ] = False,
    natural: Annotated[
        Path | None, typer.Option("--text", "--natural", help="Try removals on this text file too.")
    ] = None,
    n_prompts: Annotated[int, typer.Option(help="Random prompts to choose heads on, and as many held out.")] = 32,
    period: Annotated[
        int | None, typer.Option(help="Length of the repeated run, at least 3; by default 50, or what fits.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write verify.json and verify.parquet here.")] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
) -> None:
    """Which heads matter, and what each one is: ablations, controls, copying, and a verdict with its reasons.

    Example: `headscope verify demo --out results/demo`
    """
    check_out(out)
    loaded = opening.opened()
    from headscope.cli.progress import bars
    from headscope.evidence.verify.measure import verify as run
    from headscope.interventions.ablation import method_named
    from headscope.probes import repeated_tokens

    if n_prompts < 2:
        raise ArgumentError(f"--n-prompts {n_prompts}; verdicts need intervals, and an interval at least 2 prompts.")
    with bars() as progress:
        result = run(
            loaded,
            heads or None,
            probe=repeated_tokens(loaded, n_prompts=n_prompts, period=period, seed=seed),
            ablation=method_named(ablation),
            search="exhaustive" if exhaustive else "race",
            top=top,
            natural=None if natural is None else read_text(natural),
            seed=seed,
            progress=progress,
        )
    saved = save(result, out)
    if as_json:
        say(result.to_json(), wrap=False)
        return
    from headscope.evidence.verify.terminal import print_verification

    print_verification(result, top=top)
    if saved:
        say(f"Results: {saved[0]} and {saved[1]}")
    suggest(["circuit", *opening.words()], "who tells them where to look")
