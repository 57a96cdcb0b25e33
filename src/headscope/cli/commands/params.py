"""`headscope params`: how many parameters a head and a circuit hold."""

from __future__ import annotations

from typing import Annotated

import typer

from headscope.cli import options
from headscope.cli.following import suggest
from headscope.render.plain import say

PLACE = 13
"""Place of the command in the help."""


@options.opens()
def params(
    opening: options.Opening,
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="A head of the circuit, like L5H1; repeat it.")
    ] = None,
    as_json: options.JSON = False,
    seed: options.NO_SEED = 0,
) -> None:
    """How many parameters a head and a circuit hold.

    Without --head the circuit is the smallest that does induction: one head in each of two layers.

    Example: `headscope params demo --head L0H1 --head L1H5`
    """
    loaded = opening.opened()
    from headscope.evidence.params.measure import count_parameters

    count = count_parameters(loaded, heads=heads or ())
    if as_json:
        say(count.to_json(), wrap=False)
        return
    names = ", ".join(map(str, count.heads)) or "two heads, one in each of two layers"
    say(f"one head      {count.per_head:>15,}   W_Q, W_K, W_V, W_O")
    say(f"  with biases {count.per_head_with_bias:>15,}")
    say(f"circuit       {count.circuit:>15,}   {names}")
    say(f"model         {count.model_total:>15,}   the circuit is {count.share:.3%} of it")
    suggest(["scan", *opening.words()], "which head attends like what")
