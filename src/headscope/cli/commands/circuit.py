"""`headscope circuit`: who tells the induction head where to look."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headscope.cli import options
from headscope.cli.files import check_out, save
from headscope.errors import ArgumentError

if TYPE_CHECKING:
    from headscope.evidence.circuit.measure import Circuit, Edge, Receiver
    from headscope.records.common import Estimate

PLACE = 3
"""Where the command stands in the help."""


@options.opens()
def circuit(
    opening: options.Opening,
    heads: Annotated[
        list[str] | None, typer.Option("--head", help="Explain this head, like L5H1; repeat it. No verification then.")
    ] = None,
    n_prompts: Annotated[int, typer.Option(help="Random prompts to draw, each with its twin.")] = 32,
    period: Annotated[int, typer.Option(help="Length of the repeated run, at least 3.")] = 24,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write circuit.json and circuit.svg here.")] = None,
    as_json: options.JSON = False,
    seed: options.SEED = 0,
) -> None:
    """Who feeds whom: the heads that tell an induction head where to look, by exact path patching.

    Example: `headscope circuit demo --out results/demo`
    """
    if n_prompts < 2:
        raise ArgumentError(f"--n-prompts {n_prompts}; a circuit needs intervals, and those at least 2 prompts.")
    check_out(out)
    loaded = opening.opened()
    from headscope.cli.progress import bars
    from headscope.evidence.circuit.measure import trace_circuit
    from headscope.probes import repeated_tokens

    with bars() as progress:
        found = trace_circuit(
            loaded,
            heads or None,
            probe=repeated_tokens(loaded, n_prompts=n_prompts, period=period, seed=seed),
            seed=seed,
            progress=progress,
        )
    saved = save(found, out)
    if as_json:
        typer.echo(found.to_json())
        return
    _print(found)
    if saved:
        print(f"Results: {saved[0]} and {saved[1]}")


def _print(found: Circuit) -> None:
    from rich.console import Console
    from rich.text import Text

    from headscope.evidence.scan.terminal import print_model

    console = Console(highlight=False, soft_wrap=True)
    print_model(console, found.model)
    probe = found.probe
    console.print(
        Text(
            f"{probe['n_prompts']} prompts of {probe['length']} random tokens, each with a twin in which the token "
            f"before the key differs; {found.senders_tried} senders tried; {found.timing.wall_s:.1f} s",
            style="dim",
        )
    )
    for receiver in found.receivers:
        console.print()
        console.print(_receiver(receiver))
        for edge in (one for one in found.edges if one.receiver == receiver.head):
            console.print(_edge(edge))
        for line in _rest(receiver):
            console.print(f"  [dim]{line}[/dim]")
    for note in found.notes:
        console.print()
        console.print(Text(f"Note: {note.rstrip('.')}.", style="dim"))


def _receiver(one: Receiver) -> str:
    verdict = "" if one.verdict is None else f" {one.verdict}"
    return f"[bold]{one.head}[/bold]{verdict}  stripe {_pair(one.stripe)}, in the twin {one.corrupt.mean:.3f}"


def _edge(edge: Edge) -> str:
    held = "" if edge.mlps_held is None else f", MLPs held {edge.mlps_held.mean:+.3f}"
    weights = edge.weights
    distance = "" if weights is None or weights.z is None else f", z {weights.z:.0f}"
    composed = "" if weights is None else f"; K-composition rank {weights.rank} of {weights.of}{distance}"
    previous = "" if edge.previous_token is None else f"  (attends to the token before: {edge.previous_token:.2f})"
    loss = ", ".join(f"{name} {edge.loss_nats[name].mean:+.3f}" for name in ("k", "q", "v"))
    return (
        f"  [bold]{edge.sender} -> key[/bold] carries {edge.share:.0%} of it{previous}\n"
        f"[dim]    stripe lost through the key {_pair(edge.effect)}{held}; through the query "
        f"{_pair(edge.query_effect)}\n"
        f"    loss at the query, nats: {loss}{composed}[/dim]"
    )


def _rest(one: Receiver) -> list[str]:
    lines = []
    if one.restored is None:
        lines.append("no sender carries a tenth of it significantly: nothing found")
    else:
        held = "" if one.restored_mlps_held is None else f" (MLPs held {one.restored_mlps_held.mean:.2f})"
        lines.append(
            f"put into the twin, they restore {_pair(one.restored)} of it{held}; unexplained {one.unexplained:+.2f}"
        )
    if one.strongest_other is not None:
        lines.append(f"strongest other sender through the key {_pair(one.strongest_other)}")
    lines.append(f"strongest of all through the query {_pair(one.strongest_query)}")
    if one.weights_agree is not None:
        lines.append("weights agree" if one.weights_agree else "weights do not agree: their K-composition is chance's")
    return lines


def _pair(estimate: Estimate) -> str:
    interval = "" if estimate.ci95 is None else f" \\[{estimate.ci95[0]:.3f}, {estimate.ci95[1]:.3f}]"
    return f"{estimate.mean:.3f}{interval}"
