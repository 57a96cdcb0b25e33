"""An emergence in the terminal: one row for each checkpoint, then the phase changes."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from headscope.evidence.emergence.change import Change
from headscope.evidence.emergence.measure import Emergence
from headscope.evidence.emergence.tracker import ROLES, Snapshot
from headscope.evidence.scan.terminal import print_model
from headscope.records.common import Estimate
from headscope.render.plain import console as terminal

_COLUMNS = {
    "first_copy_loss_nats": "first copy",
    "second_copy_loss_nats": "second copy",
    "in_context_nats": "in context",
    "copying": "copying",
    "k_composition": "K-comp.",
}


def print_emergence(result: Emergence) -> None:
    """Print the checkpoints, the phase changes, and what could not be measured."""
    console = terminal()
    print_model(console, result.model)
    settings = result.settings
    read = f"{settings['n_prompts']} prompts of random tokens, a run of about {settings['period']}, twice"
    console.print(Text(f"{len(result.points)} checkpoints, each read {read}, seed {settings['seed']}", style="dim"))
    console.print()
    console.print(_table(result))
    console.print()
    for role, change in result.changes.items():
        console.print(_told(role.replace("_", " "), change))
    for name, why in result.unread.items():
        console.print(Text(f"{name} could not be measured: {why}", style="yellow"))
    missing = {what: why for point in result.points for what, why in point.snapshot.missing.items()}
    for what, why in missing.items():
        console.print(Text(f"{what} has no number: {why}", style="dim"))


def _table(result: Emergence) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("step", justify="right")
    period = result.settings["period"]
    for role in ROLES:
        title = role.replace("_", " ")
        table.add_column(f"{title}, run {period}" if role == "induction" else title, justify="right")
    curves = {name: dict(result.curve(name)) for name in _COLUMNS}
    shown = {name: title for name, title in _COLUMNS.items() if curves[name]}
    for title in shown.values():
        table.add_column(title, justify="right")
    for point in result.points:
        step = point.snapshot.step
        cells = [_number(curves[name].get(step)) for name in shown]
        table.add_row(str(step), *(_strongest(point.snapshot, role) for role in ROLES), *cells)
    return table


def _strongest(snapshot: Snapshot, role: str) -> str:
    if role in snapshot.missing:
        return ""
    best = snapshot.strongest(role)
    return f"{best.mean:.3f} {best.head}"


def _number(value: Estimate | None) -> str:
    return "" if value is None else f"{value.mean:.2f}"


def _told(role: str, change: Change) -> Text:
    if change.found is None:
        return Text(f"{role}: ", style="bold") + Text(f"no phase change found: {change.reason}")
    step, width = change.found.step, change.found.width
    return Text(f"{role}: ", style="bold") + Text(
        f"phase change at step {_whole(step)}, {_whole(width)} steps wide; {change.reason}"
    )


def _whole(value: Estimate) -> str:
    interval = "" if value.ci95 is None else f" [{value.ci95[0]:.0f}, {value.ci95[1]:.0f}]"
    return f"{value.mean:.0f}{interval}"
