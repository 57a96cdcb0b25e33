"""A behaviour in the terminal: its score, heads and the set with their controls, and the conclusion."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headscope.evidence.behavior.findings import Estimate, HeadFinding, Score, SetFinding
from headscope.evidence.behavior.result import BehaviorResult
from headscope.evidence.scan.terminal import print_model
from headscope.evidence.verify.verdict import q_text
from headscope.render.plain import console as terminal


def print_behavior(found: BehaviorResult) -> None:
    """Print what was measured, what was found, and its controls."""
    console = terminal()
    print_model(console, found.model)
    cost = found.cost
    console.print(
        Text(
            f"{found.contrast}: {found.score.n_pairs} pairs, {found.controls.search_pairs} to choose heads on and "
            f"{found.controls.held_out_pairs} held out to test them; {cost.forwards:,} prompts read, where ablating "
            f"every head in every prompt takes {cost.exhaustive:,}; {cost.wall_s:.1f} s",
            style="dim",
        )
    )
    _left_out(console, found)
    console.print()
    console.print(_scores(found))
    console.print()
    console.print(_heads(found.heads))
    console.print(
        Text(
            "removed, patched: nats of the claim's effect that go with the head. *: of the set that carries it.",
            style="dim",
        )
    )
    if found.head_set is not None:
        console.print()
        console.print(_set(found.head_set))
    for line in _controls(found):
        console.print(Text(f"  {line}"))
    console.print()
    console.print(Text(found.conclusion, style="bold"))
    for reason in found.reasons:
        console.print(Text(f"  {reason}", style="dim"))


def _left_out(console: Console, found: BehaviorResult) -> None:
    if found.problems:
        console.print(Text(f"{len(found.problems)} lines of the file left out: {found.problems[0]}", style="yellow"))
    if found.left_out:
        first = next(iter(found.left_out.values()))
        console.print(Text(f"{len(found.left_out)} pairs left out: {first}", style="yellow"))


def _scores(found: BehaviorResult) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("pairs", no_wrap=True)
    right = "right\nwithout" if found.score.claim_minus_neutral is not None else "right with\nthe true"
    for name in ("n", "claimed\n- true", "over\nno claim", "over the\ntrue claim", "turned", right):
        table.add_column(name, justify="right", no_wrap=True)
    rows: dict[str, Score] = {"all": found.score}
    rows |= {f"  {form}": score for form, score in found.forms.items()} if len(found.forms) > 1 else {}
    rows |= {one.name: one.score for one in found.controls.others}
    for name, score in rows.items():
        table.add_row(
            name,
            str(score.n_pairs),
            f"{score.claimed_minus_true.mean:+.2f}",
            "" if score.claim_minus_neutral is None else f"{score.claim_minus_neutral.mean:+.2f}",
            _interval(score.claim_minus_twin),
            "" if score.flips is None else f"{score.flips.mean:.0%}",
            f"{score.neutral_accuracy.mean:.0%}",
            style="bold" if name == "all" else "",
        )
    return table


def _heads(heads: tuple[HeadFinding, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("head")
    for name in ("removed", "q", "share", "patched", "q", "to the claim", "direct", "induction"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in heads:
        table.add_row(
            f"{one.head}{'*' if one.named else ''}",
            _interval(one.removed),
            q_text(one.q_value).removeprefix("q "),
            "" if one.share is None else f"{one.share:.0%}",
            f"{one.patched.mean:+.2f}",
            q_text(one.patched_q_value).removeprefix("q "),
            f"{one.attention.mean:.2f}",
            "" if one.direct is None else f"{one.direct.mean:+.2f}",
            "" if one.induction is None else f"{one.induction:.2f}",
            style="bold" if one.named else "" if one.carries else "dim",
        )
    return table


def _set(head_set: SetFinding) -> Text:
    text = Text(", ".join(map(str, head_set.heads)), style="bold")
    text += Text(f" taken out: {_interval(head_set.removed)} nats of the effect gone{_part(head_set.share)}")
    if head_set.flips_before is not None and head_set.flips_after is not None:
        text += Text(f", {head_set.flips_before.mean:.0%} -> {head_set.flips_after.mean:.0%} of the answers turned")
    text += Text(f"\n  loss on the prompts' words {head_set.text_loss_nats.mean:+.3f} nats")
    if head_set.accuracy_before is not None and head_set.accuracy_after is not None:
        text += Text(
            f", right without a claim {head_set.accuracy_before.mean:.0%} -> {head_set.accuracy_after.mean:.0%}"
        )
    if head_set.paraphrase_removed is not None:
        gone = _interval(head_set.paraphrase_removed)
        text += Text(f"\n  where nothing can be copied {gone} nats gone{_part(head_set.paraphrase_share)}")
    return text


def _controls(found: BehaviorResult) -> list[str]:
    controls, lines = found.controls, list[str]()
    for kind in dict.fromkeys(draw.kind for draw in controls.draws):
        draws = [draw for draw in controls.draws if draw.kind == kind]
        gone = [draw.removed.mean for draw in draws]
        turned = [draw.flips.mean for draw in draws if draw.flips is not None]
        says = f"control, {len(draws)} sets, {kind}: {min(gone):+.2f} to {max(gone):+.2f} nats gone"
        lines.append(says + (f", {min(turned):.0%} to {max(turned):.0%} of the answers turned" if turned else ""))
    for one in controls.others:
        if one.removed is not None:
            lines.append(f"on {one.name}: {_interval(one.removed)} nats gone{_part(one.share)}")
    induction = controls.induction
    if induction is not None:
        lines.append(
            f"{len(induction.heads)} induction heads, {len(induction.common)} of them among the named heads "
            f"(p {induction.p_value:.2g} by chance)"
        )
    return lines


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    interval = "" if estimate.ci95 is None else f" [{estimate.ci95[0]:+.2f}, {estimate.ci95[1]:+.2f}]"
    return f"{estimate.mean:+.2f}{interval}"


def _part(share: float | None) -> str:
    return "" if share is None else f" ({share:.0%})"
