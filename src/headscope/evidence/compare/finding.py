"""What changed, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence

from headscope.evidence.compare.result import HeadChange, RoleChange, SwapTest, changed_heads, heads_elsewhere
from headscope.heads import HeadId

NAMED = 3
"""Changed heads that the sentence names."""


def finding(
    labels: tuple[str, str],
    heads: Sequence[HeadChange],
    unmatched: Sequence[HeadId],
    differ: Sequence[str],
    *,
    bound: float | None = None,
    also: Sequence[str] = (),
    swap: SwapTest | None = None,
) -> str:
    """The pair's finding, with its numbers."""
    from_, to = labels
    compared = [one for one in heads if one.counterpart is not None]
    changed = changed_heads(compared)
    moved = [one for one in compared if one.counterpart != one.head]
    parts: list[str] = []
    if not compared:
        return f"No head of {from_} has a counterpart in {to}, so none was compared."
    if changed:
        named = "; ".join(_said(one, one.changed[0]) for one in changed[:NAMED])
        more = f"; and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        most = max(changed, key=lambda one: _size(one.changed[0]))
        if most in changed[NAMED:]:
            more += f", the largest change that of {_said(most, most.changed[0])}"
        count = "1 head" if len(changed) == 1 else f"{len(changed)} heads"
        attend = "attends" if len(changed) == 1 else "attend"
        layers = sorted({(one.head.call, one.head.layer) for one in changed})
        order = ", earliest layer first" if len(layers) > 1 else ""
        parts.append(f"{count} of {len(compared)} {attend} differently in {to}{order}: {named}{more}")
        if len(layers) > 1:
            parts.append(
                f"those after layer {layers[0][1]} read what earlier layers write, so that they may differ because of "
                "an earlier head"
            )
    else:
        largest = max(((one, role) for one in compared for role in one.roles), key=lambda pair: _size(pair[1]))
        parts.append(
            f"No head of {len(compared)} is shown to change a role's score in {to}; the largest difference is "
            f"{_size(largest[1]):.2g} ({_words(largest[1].role)} of {largest[0].head})"
            + ("" if bound is None else f", and none is beyond {bound:.2g}")
        )
    others = [(one.head, one.match) for one in heads_elsewhere(compared) if one.match is not None]
    if others:
        names = ", ".join(f"{head} (similarity {match.similarity:.2f})" for head, match in others[:NAMED])
        more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
        parts.append(f"patterns differ, whatever the roles' scores, in {names}{more}")
    if moved:
        names = ", ".join(f"{one.head} is {one.counterpart}" for one in moved[:NAMED])
        more = f" and {len(moved) - NAMED} more" if len(moved) > NAMED else ""
        parts.append(f"{len(moved)} {'has' if len(moved) == 1 else 'have'} another number there: {names}{more}")
    alone = len(heads) - len(compared)
    if alone or unmatched:
        parts.append(f"without a counterpart are {alone} heads of {from_} and {len(unmatched)} of {to}")
    parts += also
    if swap is not None:
        parts.append(_carried(swap))
    formats = [one for one in differ if one.startswith(("dtype ", "weights "))]
    parts += [f"the models differ in {one}" for one in formats]
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def _said(one: HeadChange, role: RoleChange) -> str:
    word = {"gained": "gained ", "lost": "lost "}.get(role.status, "")
    return f"{one.head} {word}{_words(role.role)} ({role.a:.2f} to {role.b:.2f})"


def _size(role: RoleChange) -> float:
    return abs(role.difference.mean)


def _words(role: str) -> str:
    return role.replace("_", " ")


def _carried(swap: SwapTest) -> str:
    if not swap.asked:
        return f"the swap test asks nothing: {swap.reason}"
    apart = f"the loss on repetition differs by {swap.difference.mean:+.3f} nats"
    if swap.sources is None:
        together = (
            "" if swap.everything is None else f"; all heads' z together restore {swap.everything.restores.mean:.0%}"
        )
        return f"{apart}, and no single head's z carries it{together}"
    names = ", ".join(map(str, swap.sources.heads[:NAMED]))
    chance = max((one.restores.mean for one in swap.random), default=None)
    control = "" if chance is None else f"; random heads restore at most {max(0.0, chance):.0%}"
    return (
        f"{apart}: swapping {names} restores {swap.sources.restores.mean:.0%} of it and transfers "
        f"{swap.sources.transfers.mean:.0%}{control}"
    )
