"""A verification in the terminal: heads with their verdicts, the set, its controls, and the reasons."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from headscope.evidence.known.lists import known_as, remark
from headscope.evidence.scan.terminal import print_model
from headscope.evidence.verify.evidence import q_text
from headscope.evidence.verify.result import HeadSet, HeadVerdict, Verification
from headscope.records.common import Estimate
from headscope.render.plain import console as terminal


def print_verification(found: Verification, *, top: int) -> None:
    """Print the verdicts, largest effect first, and what they rest on."""
    console = terminal()
    print_model(console, found.model)
    console.print(Text(_made(found), style="dim"))
    console.print()
    named, rest = found.by_effect()
    shown = named + rest[: max(0, top - len(named))]
    console.print(_table(found, shown, natural=any(one.natural is not None for one in shown)))
    console.print(
        Text(
            "Δ: nats per token without the head, minus with it. "
            "~ estimate; this head was eliminated before an exact measurement.",
            style="dim",
        )
    )
    if known_as(found.model):
        console.print(Text(remark(found.model), style="dim"))
    if len(shown) < len(found.heads):
        console.print(
            Text(f"{len(found.heads) - len(shown)} more heads, none with a role; --json has all.", style="dim")
        )
    for one in found.sets:
        console.print()
        console.print(_set(one, found))
    if not found.sets:
        console.print(Text("No head is called induction.", style="dim"))
    console.print()
    for one in [one for one in shown if one in named]:
        console.print(
            Text(f"{one.head} {one.verdict}", style="bold") + Text(f": {_meaning(found, one)}", style="not bold")
        )
        for reason in one.reasons:
            console.print(Text(f"  {reason}", style="dim"))


def _made(found: Verification) -> str:
    probe, clean = found.probe, found.clean
    return (
        f"{probe['n_prompts']} prompts of {probe['length']} random tokens to choose heads on, "
        f"{found.controls.held_out_prompts} held out to measure them, {found.ablation['method']} ablation; "
        f"clean loss {clean['second_copy'].mean:.3f} nats on the second copy, {clean['first_copy'].mean:.3f} on the "
        f"first; {found.timing.wall_s:.1f} s"
    )


def _meaning(found: Verification, one: HeadVerdict) -> str:
    return found.meaning(one.verdict).sentence


def _table(found: Verification, heads: list[HeadVerdict], *, natural: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("head")
    table.add_column("verdict", no_wrap=True)
    columns = ["Δ second copy", "95% interval", "q", "Δ first copy", *(["Δ text"] if natural else [])]
    for name in [*columns, "copying", "stripe"]:
        table.add_column(name, justify="right", no_wrap=True)
    published = known_as(found.model)
    if published:
        table.add_column("known as", no_wrap=True)
    for one in heads:
        delta = one.delta_loss_nats
        interval = "" if delta is None or delta.ci95 is None else f"[{delta.ci95[0]:+.3f}, {delta.ci95[1]:+.3f}]"
        table.add_row(
            str(one.head),
            one.verdict,
            "" if delta is None else f"{delta.mean:+.3f}" + ("" if one.exact else " ~"),
            interval,
            "" if one.q_value is None else q_text(one.q_value).removeprefix("q "),
            _signed(one.first_copy),
            *([_signed(one.natural)] if natural else []),
            "" if one.copying is None else f"{one.copying.direct.mean:+.2f}",
            f"{one.attention['induction']:.2f}" if "induction" in one.attention else "",
            *([published.get(one.head, "")] if published else []),
            style="" if found.meaning(one.verdict).has_role else "dim",
        )
    return table


def _set(one: HeadSet, found: Verification) -> Text:
    names = ", ".join(map(str, one.heads))
    text = Text(f"{names}", style="bold")
    text += Text(f"  {one.relation}\n", style="bold")
    text += Text(
        f"  all gone: second copy {_interval(one.delta_loss_nats)}, first copy {_interval(one.first_copy)}"
        + ("" if one.natural is None else f", natural text {_interval(one.natural)}")
        + f"\n  each gone, added up: second copy {_interval(one.sum_of_singles)}"
    )
    if one.copying is not None:
        text += Text(f"\n  together they raise the token they attend to above all others in {one.copying.top1:.0%}")
    draws = found.controls.random_heads
    if not draws:
        return text + Text("\n  no other head in their layers to match as a control", style="yellow")
    count = (
        f"{len(draws[0].random_heads)} of them against as many" if len(draws[0].heads) < len(one.heads) else "as many"
    )
    low, high = (pick([draw.random_delta_loss_nats.mean for draw in draws]) for pick in (min, max))
    own = [draw.delta_loss_nats.mean for draw in draws]
    matched = "layer and size" if found.controls.norm_matched else "layer"
    return text + Text(
        f"\n  control, {count} random heads matched by {matched}, {len(draws)} draws: second copy {low:+.3f} to "
        f"{high:+.3f} nats, against {min(own):+.3f} to {max(own):+.3f}"
    )


def _signed(estimate: Estimate | None) -> str:
    return "" if estimate is None else f"{estimate.mean:+.3f}"


def _interval(estimate: Estimate) -> str:
    interval = "" if estimate.ci95 is None else f" [{estimate.ci95[0]:+.3f}, {estimate.ci95[1]:+.3f}]"
    return f"{estimate.mean:+.3f}{interval} nats"
