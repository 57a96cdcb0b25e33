"""`headscope emergence`: follow a model through the checkpoints of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.files import check_out, save
from headscope.cli.following import suggest
from headscope.render.plain import say

PLACE = 10
"""Place of the command in the help."""


@options.opens("device", "dtype", "allow_pickle", "trust_remote_code")
def emergence(
    opening: options.Opening,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A folder of checkpoints, or a hub id with revisions like step1000.")
    ],
    revision: Annotated[
        list[str] | None, typer.Option(help="Only this checkpoint, or those of a pattern like 'step*000'; repeat it.")
    ] = None,
    every: Annotated[int, typer.Option(help="Only steps that are multiples of it.")] = 1,
    n_prompts: Annotated[int, typer.Option(help="Random prompts that each checkpoint reads.")] = 8,
    period: Annotated[int, typer.Option(help="Length of the repeated run, at least 3.")] = 24,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write emergence.json, .parquet and .svg here; a second run goes on from it."),
    ] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
) -> None:
    """When induction sets in: every checkpoint's heads and losses, and the phase change with its interval.

    Example: `headscope emergence EleutherAI/pythia-70m --revision 'step*000' --out results/pythia`
    """
    from headscope.cli.quiet import silence

    check_out(out)
    silence()
    from headscope.cli.progress import bar
    from headscope.evidence.emergence.measure import emergence as run

    with bar("checkpoints") as progress:
        result = run(
            source,
            revisions=revision or None,
            every=every,
            n_prompts=n_prompts,
            period=period,
            seed=seed,
            **opening.settings("revision", "gguf_file"),
            keep=None if out is None else out / "checkpoints",
            progress=progress,
        )
    saved = save(result, out)
    if as_json:
        say(result.to_json(), wrap=False)
        return
    from headscope.evidence.emergence.terminal import print_emergence

    print_emergence(result)
    if saved:
        say(f"Results: {', '.join(map(str, saved[:-1]))} and {saved[-1]}")
    if out is None:
        suggest(["emergence", source, "--out", "results/emergence"], "keep it, with a picture")
        return
    last = result.points[-1].name
    model = [Path(source) / last] if Path(source).is_dir() else [source, "--revision", last]
    suggest(["report", *model, "--emergence", out], "its curves beside the last checkpoint's heads")
