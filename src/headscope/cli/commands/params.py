"""`headscope params`: how many parameters a head and a circuit hold."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headscope.cli import options


def params(
    model: options.MODEL = "demo",
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="A head of the circuit, like L5H1; repeat it.")
    ] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
    device: options.DEVICE = None,
    dtype: options.DTYPE = "auto",
    revision: options.REVISION = None,
    allow_pickle: options.ALLOW_PICKLE = False,
    trust_remote_code: options.TRUST_REMOTE_CODE = False,
) -> None:
    """How many parameters a head and a circuit hold.

    Without --head the circuit is the smallest that does induction: one head in each of two layers. Counting draws
    nothing at random: --seed changes nothing.

    Example: `headscope params demo --head L0H1 --head L1H5`
    """
    from headscope.cli.quiet import opened

    loaded = opened(
        model,
        device=device,
        dtype=dtype,
        revision=revision,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
    )
    from headscope.evidence.params.measure import count_parameters

    count = count_parameters(loaded, heads=heads or ())
    if as_json:
        typer.echo(json.dumps(count.to_dict(), indent=1))
        return
    names = ", ".join(map(str, count.heads)) or "two heads, one in each of two layers"
    typer.echo(f"one head      {count.per_head:>15,}   W_Q, W_K, W_V, W_O")
    typer.echo(f"  with biases {count.per_head_with_bias:>15,}")
    typer.echo(f"circuit       {count.circuit:>15,}   {names}")
    typer.echo(f"model         {count.model_total:>15,}   the circuit is {count.share:.3%} of it")
