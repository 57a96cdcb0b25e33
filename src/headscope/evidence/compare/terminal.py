"""A comparison in the terminal: the finding, what changed, which head is which."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headscope.evidence.compare.result import Comparison, HeadChange, PairChange, RoleChange, SwapTest
from headscope.heads import ranking
from headscope.render.plain import console as terminal

COLUMNS = 12
"""Models that a table shows."""


def print_comparison(found: Comparison, *, top: int) -> None:
    """Print it to stdout."""
    console = terminal()
    for side in found.sides:
        model = side.model
        console.print(
            Text(f"{side.label}  {model.id}", style="bold")
            + Text(
                f"  {model.family}, {model.n_layers} layers of {model.n_heads} heads, {side.provenance.dtype}, "
                f"{side.probe['n_prompts']} prompts",
                style="dim",
            )
        )
    for pair in found.pairs:
        console.print()
        _pair(console, pair, top)
    if len(found.sides) > 2:
        console.print()
        console.print(_roles(found))
        console.print()
        console.print(_by_head(found, top))
        if len(found.sides) > COLUMNS:
            console.print(
                Text(f"Both tables show {COLUMNS} of {len(found.sides)} models; --json has all.", style="dim")
            )
        for one in found.nearest[:1]:
            ties = sum(round(other.similarity, 6) == round(one.similarity, 6) for other in found.nearest) - 1
            console.print(
                f"Most alike: {one.a} and {one.b}, similarity {one.similarity:.3f} by {one.by}"
                + (f"; as much {ties} more" if ties else "")
            )


def _pair(console: Console, pair: PairChange, top: int) -> None:
    console.print(Text(f"{pair.a} to {pair.b}: {pair.finding}"))
    console.print(Text(f"{'Paired by prompt' if pair.paired else 'Not paired'}: {pair.why}.", style="dim"))
    changed = pair.changed
    if changed:
        console.print()
        console.print(_changes(changed[:top]))
        if len(changed) > top:
            console.print(Text(f"{len(changed) - top} more heads changed; --top shows them.", style="dim"))
    for one in pair.moved[:top]:
        assert one.match is not None, "another number is found by pattern"
        console.print(
            Text(
                f"{one.head} of {pair.a} is {one.counterpart} of {pair.b}: agreement {one.match.agreement:.2f}, next "
                f"best {one.match.next_best or 0.0:.2f}",
                style="dim",
            )
        )

    for verdict in pair.verdicts or ():
        if verdict.changed:
            console.print(f"[bold]{verdict.head}[/bold] {_words(verdict.a)}, now {_words(verdict.b)}")
            for label, reasons in ((pair.a, verdict.reasons_a), (pair.b, verdict.reasons_b)):
                console.print(Text(f"  {label}: {'; '.join(reasons)}", style="dim"))
    for edge in pair.edges or ():
        if edge.status != "kept":
            console.print(f"{edge.sender} -> {edge.input} of {edge.receiver}: {edge.status}")
    for held in pair.outcomes or ():
        if held.status != "kept":
            apart = "" if held.apart else "; the intervals of both scores meet"
            console.print(
                f"[bold]{held.head}[/bold] {held.status} {_words(held.role)} in the atlas: {_outcome(held.a)} "
                f"({held.score_a.mean:.2f}), now {_outcome(held.b)} ({held.score_b.mean:.2f}){apart}"
            )
    if pair.swap is not None and pair.swap.asked:
        console.print()
        console.print(_swapped(pair.swap, top))


def _swapped(swap: SwapTest, top: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("swapped", "restores", "transfers", "q", "what"):
        table.add_column(name, justify="left" if name in ("swapped", "what") else "right")
    ranked = sorted(swap.heads, key=lambda one: ranking(one.restores.mean, one.head))
    for one in ranked[:top]:
        what = "source" if one.source else "passes it on" if one.carries else ""
        table.add_row(
            *(str(one.head), f"{one.restores.mean:.2f}", f"{one.transfers.mean:.2f}", f"{one.q_value:.1g}", what),
            style="" if one.carries else "dim",
        )
    sets = [("all heads", swap.everything), ("sources", swap.sources), *(("random", one) for one in swap.random)]
    for name, some in sets:
        if some is not None:
            table.add_row(name, f"{some.restores.mean:.2f}", f"{some.transfers.mean:.2f}", "", "", style="dim")
    return table


def _outcome(outcome: str | None) -> str:
    return outcome or "not tried"


def _words(verdict: str) -> str:
    return verdict.replace("_", " ")


def _changes(changed: tuple[HeadChange, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("head", "role", "what"):
        table.add_column(name)
    for name in ("before", "after", "difference", "95% interval", "q"):
        table.add_column(name, justify="right")
    for one in changed:
        name = str(one.head) if one.counterpart == one.head else f"{one.head} = {one.counterpart}"
        for index, role in enumerate(one.changed):
            table.add_row(name if index == 0 else "", *_cells(role))
    return table


def _cells(role: RoleChange) -> list[str]:
    ends = role.difference.ci95
    interval = "" if ends is None else f"[{ends[0]:+.3f}, {ends[1]:+.3f}]"
    what = role.status if role.status in ("gained", "lost") else "more" if role.difference.mean > 0 else "less"
    return [
        role.role,
        what,
        f"{role.a:.3f}",
        f"{role.b:.3f}",
        f"{role.difference.mean:+.3f}",
        interval,
        f"{role.q_value:.1g}",
    ]


def _roles(found: Comparison) -> Table:
    """Heads found for each role in every model."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("role")
    for side in found.sides[:COLUMNS]:
        table.add_column(side.label)
    for role in found.sides[0].roles:
        heads = [", ".join(map(str, side.roles.get(role, ())[:4])) or "-" for side in found.sides[:COLUMNS]]
        table.add_row(role, *heads)
    return table


def _by_head(found: Comparison, top: int) -> Table:
    """One role's score of every head in every model: the role of the largest difference, its largest heads first."""
    gaps = dict.fromkeys(found.sides[0].roles, 0.0)
    for one in (one for pair in found.pairs for head in pair.heads for one in head.roles if one.role in gaps):
        gaps[one.role] = max(gaps[one.role], abs(one.difference.mean))
    role = max(gaps, key=lambda name: round(gaps[name], 6))
    scores = [{one.head: one.scores.get(role) for one in side.heads} for side in found.sides[:COLUMNS]]
    best = {
        head: max(one.get(head) or 0.0 for one in scores) for head in dict.fromkeys(h for one in scores for h in one)
    }
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(_words(role))
    for side in found.sides[:COLUMNS]:
        table.add_column(side.label, justify="right")
    for head in sorted(best, key=lambda head: ranking(best[head], head))[:top]:
        values = [one.get(head) for one in scores]
        table.add_row(str(head), *("-" if value is None else f"{value:.2f}" for value in values))
    return table
