"""`headscope atlas`: every head's known roles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli import options
from headscope.cli.files import check_out, save, saving
from headscope.cli.following import suggest
from headscope.render.plain import counted, say

if TYPE_CHECKING:
    from headscope.evidence.atlas.result import Atlas

PLACE = 3
"""Place of the command in the help."""


@options.opens()
def atlas(
    opening: options.Opening,
    roles: Annotated[
        str | None, typer.Option(help="Only these roles, like sink,retrieval.", show_default="all")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Attention and weights only; no interventions.")] = False,
    n_prompts: Annotated[int, typer.Option(help="Prompts of every probe, at least 4.")] = 32,
    top: Annotated[int, typer.Option(help="Heads to print.", min=1)] = 30,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write atlas.json here, and go on here after a stop.")
    ] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
) -> None:
    """Every head's known roles, each with its control, causal tests and outcome; heads that matter without one first.

    Example: `headscope atlas demo --quick`
    """
    check_out(out)
    loaded = opening.opened()
    from headscope.cli.progress import PATIENCE_S, bars, told
    from headscope.evidence.atlas.measure import Plan
    from headscope.evidence.atlas.measure import atlas as run

    def planned(plan: Plan) -> None:
        if plan.wall_s > PATIENCE_S:
            cost = f"{counted(plan.roles, 'role')}, {plan.passes:.0f} forward passes of 4,096 tokens"
            say(f"about {told(plan.wall_s)}: {cost}", err=True)

    def measure() -> Atlas:
        with bars() as progress:
            return run(
                loaded,
                None if roles is None else [one.strip() for one in roles.split(",") if one.strip()],
                quick=quick,
                seed=seed,
                n_prompts=n_prompts,
                keep=out,
                progress=progress,
                planned=planned,
            )

    if out is None:
        result = measure()
    else:
        with saving(out):
            result = measure()
    saved = save(result, out)
    if as_json:
        say(result.to_json(), wrap=False)
        return
    from headscope.evidence.atlas.terminal import print_atlas

    print_atlas(result, top=top)
    if saved:
        say(f"Results: {saved[0]}")
    asks = ["known", out] if out else ["report", *opening.words()]
    suggest(asks, "whether published heads agree" if out else "scan, verdicts and circuit on one page")
