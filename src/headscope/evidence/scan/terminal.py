"""A scan in the terminal: the heads of each role, best first, and layer x head maps in characters."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headscope.evidence.known.lists import known_as, remark
from headscope.evidence.scan.result import THRESHOLD, HeadScore, Scan
from headscope.records.common import ModelInfo
from headscope.render.maps import heatmap_text
from headscope.render.plain import console as terminal
from headscope.render.plain import say


def print_scan(scan: Scan, *, top: int, heatmap: bool) -> None:
    """Print the head table, what was not found, and the maps if asked for."""
    console = terminal()
    print_model(console, scan.model)
    console.print(Text(_probe(scan), style="dim"))
    console.print()
    console.print(_table(scan, top))
    for line in _remarks(scan, top):
        console.print(Text(line, style="dim"))
    if heatmap:
        for role in scan.roles:
            console.print()
            say(heatmap_text(scan.panel(role.name)), wrap=False)


def print_model(console: Console, model: ModelInfo) -> None:
    """Print which model it is and how well it is supported."""
    console.print(
        Text(f"{model.id}", style="bold") + Text(f"  {model.family}, {model.n_layers} layers of {model.n_heads} heads")
    )
    style = "green" if model.support == "exact" else "yellow"
    console.print(Text("support ") + Text(model.support, style=style) + Text(f": {model.reason}", style="dim"))


def _probe(scan: Scan) -> str:
    probe = scan.probe
    if probe["kind"] == "repeated_tokens":
        run = f"a run of about {probe['period']}" if probe["jitter"] else f"a run of {probe['period']} at fixed places"
        if "usual_period" in probe:
            run += f" (not {probe['usual_period']}, to fit the model)"
        read = (
            f"{probe['n_prompts']} prompts of {probe['length']} random tokens, {run}, {probe['n_repeats']} times, "
            f"seed {probe['seed']}, each with its control"
        )
    else:
        read = f"{probe['n_prompts']} of your own prompts, without control"
    cost = f"{scan.timing.tokens:,} tokens in {scan.timing.wall_s:.2f} s, kernel {', '.join(scan.provenance.kernels)}"
    return f"{read}; {cost}"


def _table(scan: Scan, top: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("role")
    table.add_column("head")
    for name in ("score", "95% interval", "chance", "control", "score - control"):
        table.add_column(name, justify="right")
    published = known_as(scan.model)
    if published:
        table.add_column("known as")
    alike = _alike(scan)
    for role in scan.roles:
        if role.name in alike:
            continue
        found = scan.heads(role.name)
        for rank, score in enumerate(found[:top]):
            known = [published.get(score.head, "")] if published else []
            table.add_row(role.name if rank == 0 else "", *_cells(score), *known, style="bold" if rank == 0 else "")
        if not found:
            best = scan.ranked(role.name)[0]
            table.add_row(role.name, *_cells(best), style="dim")
    return table


def _alike(scan: Scan) -> dict[str, str]:
    """Roles whose rows are those of a role before them, by name, with that role's."""
    first: dict[object, str] = {}
    alike: dict[str, str] = {}
    for role in scan.roles:
        rows = tuple(map(tuple, map(_cells, scan.heads(role.name) or scan.ranked(role.name)[:1])))
        if first.setdefault((bool(scan.heads(role.name)), rows), role.name) != role.name:
            alike[role.name] = first[bool(scan.heads(role.name)), rows]
    return alike


def _cells(score: HeadScore) -> list[str]:
    interval = "" if score.ci95 is None else f"[{score.ci95[0]:.3f}, {score.ci95[1]:.3f}]"
    control = "" if score.control is None else f"{score.control:.3f}"
    gain = "" if score.selectivity is None else f"{score.selectivity.mean:+.3f}"
    return [str(score.head), f"{score.mean:.3f}", interval, f"{score.chance:.3f}", control, gain]


def _remarks(scan: Scan, top: int) -> list[str]:
    lines = [f"{role}: the same heads and scores as {other}." for role, other in _alike(scan).items()]
    none = [role.name for role in scan.roles if not scan.heads(role.name)]
    if none:
        lines.append(f"No head found for {', '.join(none)}; the best is shown dim.")
    controlled = any(score.control is not None for score in scan.scores)
    lines.append(
        f"Found: score at least {THRESHOLD} and, for roles about content, at least half of it gone on the control."
        if controlled
        else f"Found: score at least {THRESHOLD}, on the score alone: without a control, roles about content are not "
        "told from places."
    )
    asked, widest = scan.probe.get("precision"), scan.widest
    if asked is not None and widest is not None and widest > asked:
        lines.append(
            f"Precision {asked:g} was not reached in {scan.probe['n_prompts']} prompts: the widest interval is "
            f"± {widest:.2g}."
        )
    more = {role.name: len(scan.heads(role.name)) - top for role in scan.roles}
    lines += [f"{count} more {name} heads; --top shows them." for name, count in more.items() if count > 0]
    lines += [f"{name} has no score: {why}." for name, why in scan.unscored.items()]
    if known_as(scan.model):
        lines.append(remark(scan.model))
    return lines
