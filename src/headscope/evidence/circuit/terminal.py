"""A circuit in the terminal: for each receiver its senders, what they restore, and what could not be asked."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from headscope.evidence.circuit.result import INPUT_NAMES, RULE, Circuit, Edge, Receiver, SenderSet
from headscope.evidence.scan.terminal import print_model
from headscope.heads import HeadId
from headscope.records.common import Estimate
from headscope.render.plain import console as terminal

CHANGES = {
    "before_key": "the token before the key",
    "two_before_key": "the token two before the key",
    "before_query": "the token before the query",
}
"""What differs in a corrupt prompt, in words."""


def print_circuit(found: Circuit) -> None:
    """Print it to stdout."""
    console = terminal()
    print_model(console, found.model)
    probe = found.probe
    console.print(
        Text(
            f"{probe['n_prompts']} prompts of {probe['length']} random tokens, each also with another token before the "
            f"key; {found.senders_tried} senders tried; {found.timing.wall_s:.1f} s",
            style="dim",
        )
    )
    for receiver in found.receivers:
        console.print()
        console.print(_receiver(receiver))
        for edge in (one for one in found.edges if one.receiver == receiver.head):
            console.print(_edge(edge))
        for line in _rest(receiver, [one for one in found.sets if one.receiver == receiver.head]):
            console.print(f"  [dim]{line}[/dim]")
        for edge in (one for one in found.context if one.receiver == receiver.head):
            console.print(f"[dim]  where {CHANGES[edge.changed]} differs:[/dim]")
            console.print(_edge(edge))
    for note in found.notes:
        console.print()
        console.print(Text(f"Note: {note.rstrip('.')}.", style="dim"))


def names_of(heads: Sequence[HeadId]) -> str:
    """`L0H1`, `L0H1 or L0H2`, `L0H1, L0H2 or L0H3`."""
    *most, last = map(str, heads)
    return f"{', '.join(most)} or {last}" if most else last


def _receiver(one: Receiver) -> str:
    verdict = "" if one.verdict is None else f" {one.verdict}"
    place = "stripe" if one.offset == 0 else f"attention to the key {one.offset} after the stripe's"
    return (
        f"[bold]{one.head}[/bold]{verdict}  {place} {_pair(one.stripe)}, in the corrupt prompts {one.corrupt.mean:.3f}"
    )


def _edge(edge: Edge) -> str:
    held = "" if edge.mlps_held is None else f", MLPs held {edge.mlps_held.mean:+.3f}"
    weights, route = edge.weights, INPUT_NAMES[edge.input]
    distance = "" if weights is None or weights.z is None else f", z {weights.z:.0f}"
    margin = "" if weights is None or weights.margin is None else f", {weights.margin:.2f} x the best other head"
    composed = (
        ""
        if weights is None
        else f"; {edge.input.upper()}-composition rank {weights.rank} of {weights.of}{distance}{margin}"
    )
    previous = "" if edge.previous_token is None else f"  (attends to the token before: {edge.previous_token:.2f})"
    loss = ", ".join(f"{name} {edge.loss_nats[name].mean:+.3f}" for name in ("k", "q", "v"))
    together = f" with {names_of(edge.any_of)}" if edge.any_of else ""
    through = "" if edge.input == "q" else f"; through the query {_pair(edge.query_effect)}"
    return (
        f"  [bold]{edge.sender} -> {route}[/bold]{' shares in' if together else ' carries'} {edge.share:.0%} of it"
        f"{together}{previous}\n"
        f"[dim]    stripe lost through the {route} {_pair(edge.effect)}{held}{through}\n"
        f"    loss at the query, nats: {loss}{composed}[/dim]"
    )


def _rest(one: Receiver, sets: Sequence[SenderSet]) -> list[str]:
    if not one.asked:
        return [
            "the corrupt prompts take less than a tenth of it, or nothing significant: they cannot ask who carries it"
        ]
    lines = [_set(some) for some in sets]
    assert one.unexplained is not None, "what is asked has a share"
    if one.restored is None:
        lines.append("no sender carries a tenth of it significantly, alone or in a set: nothing found")
    else:
        held = "" if one.restored_mlps_held is None else f" (MLPs held {one.restored_mlps_held.mean:.2f})"
        lines.append(
            f"patched into the corrupt prompts, they restore {_pair(one.restored)} of it{held}; unexplained "
            f"{one.unexplained:+.2f}"
        )
    if one.strongest_other is not None:
        lines.append(f"strongest other sender through the key {_pair(one.strongest_other)}")
    if one.strongest_query is not None:
        lines.append(f"strongest of all through the query {_pair(one.strongest_query)}")
    for change, share in (one.context or {}).items():
        if share.mean >= RULE.share:
            lines.append(f"it also compares {CHANGES[change]}: another one takes {_pair(share)} of it")
    if one.weights_agree is not None:
        lines.append(
            "weights agree: no other head composes as much"
            if one.weights_agree
            else "weights do not tell: another head composes about as much, or all compose as by chance"
        )
    return lines


def _set(some: SenderSet) -> str:
    alone = ", ".join(f"{one.mean:.2f}" for one in some.alone)
    claim = (
        f"any of {names_of(some.senders)} is enough"
        if some.any_one_is_enough
        else f"of {names_of(some.senders)}, several are needed"
    )
    return (
        f"{claim}: without all of them {some.share:.0%} is lost, without each alone {some.singles:.0%} in all; each "
        f"alone restores {alone}"
    )


def _pair(estimate: Estimate) -> str:
    interval = "" if estimate.ci95 is None else f" \\[{estimate.ci95[0]:.3f}, {estimate.ci95[1]:.3f}]"
    return f"{estimate.mean:.3f}{interval}"
