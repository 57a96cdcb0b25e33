"""`headscope behavior`: how strong a behaviour is, which heads carry it, and what speaks against that."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.files import check_out, save


def behavior(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="`sycophancy`, `praise_agreement`, a file of pairs, hub:NAME.")
    ],
    model: options.MODEL = "demo",
    top: Annotated[int, typer.Option(help="Heads that pass the triage, to be ablated and patched.", min=1)] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write behavior.json and behavior.parquet here.")
    ] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
    device: options.DEVICE = None,
    dtype: options.DTYPE = "auto",
    revision: options.REVISION = None,
    allow_pickle: options.ALLOW_PICKLE = False,
    trust_remote_code: options.TRUST_REMOTE_CODE = False,
) -> None:
    """How strong a behaviour is, which heads carry it, and what speaks against that: `sycophancy`, or pairs of yours.

    Example: `headscope behavior sycophancy demo --out results/demo`
    """
    from headscope.cli.quiet import opened

    check_out(out)
    loaded = opened(
        model,
        device=device,
        dtype=dtype,
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    from headscope.cli.progress import bars
    from headscope.evidence.behavior.search import behavior as run

    with bars() as progress:
        result = run(name, loaded, top=top, seed=seed, progress=progress)
    saved = save(result, out)
    if as_json:
        typer.echo(result.to_json())
        return
    from headscope.evidence.behavior.terminal import print_behavior

    print_behavior(result)
    if saved:
        print(f"Results: {saved[0]} and {saved[1]}")
