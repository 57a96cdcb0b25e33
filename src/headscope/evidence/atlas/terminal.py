"""An atlas in the terminal: unexplained heads first, then each head with its roles, then what was not asked."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from headscope.evidence.atlas.finding import HELD, RoleFinding
from headscope.evidence.atlas.result import Atlas, HeadSummary, by_reason
from headscope.evidence.known.lists import known_as
from headscope.evidence.known.terminal import print_known
from headscope.evidence.scan.terminal import print_model
from headscope.render.plain import console as terminal
from headscope.render.plain import counted

COLUMNS = 11
"""Of the table, without `known as`."""


def print_atlas(found: Atlas, *, top: int = 30) -> None:
    """Print heads that are unexplained or have a role's score, at most `top` of each kind."""
    console = terminal()
    published = known_as(found.model)
    print_model(console, found.model)
    kind = "quick: attention and weights only, so no role is confirmed" if found.quick else "full"
    n_prompts = found.settings["n_prompts"]
    console.print(
        Text(
            f"{counted(len(found.roles), 'role')} of {counted(len(found.heads), 'head')}, {n_prompts} prompts each; "
            f"{kind}; "
            f"{found.timing.wall_s:.1f} s",
            style="dim",
        )
    )
    of: dict[object, list[RoleFinding]] = {}
    for one in found.findings:
        if one.has_score:
            of.setdefault(one.head, []).append(one)
    shown = [one for one in found.heads if one.status == "unexplained" or one.head in of]
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("head", "role", "outcome"):
        table.add_column(name, no_wrap=True)
    for name in ("score", "control", "chance", "zero", "mean", "transfer", "Δ loss", "unexplained"):
        table.add_column(name, justify="right", no_wrap=True)
    if published:
        table.add_column("known as", no_wrap=True)
    for head in shown[:top]:
        _add(table, head, of.get(head.head, []), published.get(head.head, ""))
    console.print()
    console.print(table)
    if len(shown) > top:
        console.print(Text(f"{len(shown) - top} more heads; --json has all.", style="dim"))
    if not shown:
        console.print("No head has a role's score, and none is unexplained.")
    elif found.unexplained:
        n_roles = len(found.roles)
        asked = "not the one role that was asked" if n_roles == 1 else f"none of the {n_roles} roles that were asked"
        console.print(Text(f"unexplained: removing it changes the loss, and it holds {asked}.", style="dim"))
    for why, names in by_reason(found.not_asked).items():
        console.print(Text(f"not asked: {', '.join(names)} ({why})", style="dim"))
    if found.known:
        console.print()
        print_known(found.known, console)


def _add(table: Table, head: HeadSummary, findings: list[RoleFinding], published: str) -> None:
    """A row for each finding; what was published of the head is a last cell, where the table has one."""
    loss = "" if head.removed is None else f"{head.removed.estimate.mean:+.3f}"
    share = "" if head.unexplained is None else f"{head.unexplained:.0%}"
    if not findings:
        table.add_row(str(head.head), "unexplained", "", *[""] * 6, loss, "all", *_last(table, published))
        return
    ordered = sorted(findings, key=lambda one: (one.role not in head.roles, -one.score.mean))
    for at, one in enumerate(ordered):
        effects = (one.tests.get(name) for name in ("zero", "mean", "transfer"))
        table.add_row(
            str(head.head) if at == 0 else "",
            one.role + ("" if one.variant is None else f" ({one.variant})"),
            one.outcome or "not tried",
            f"{one.score.mean:.2f}",
            "" if one.control is None else f"{one.control:.2f}",
            f"{one.chance:.2f}",
            *("" if test is None else f"{test.estimate.mean:+.3f}" for test in effects),
            loss if at == 0 else "",
            share if at == 0 else "",
            *_last(table, published if at == 0 else ""),
            style="" if one.outcome in (*HELD, None) else "dim",
        )


def _last(table: Table, published: str) -> list[str]:
    return [published] if len(table.columns) > COLUMNS else []
