"""The finding: what was found, in one sentence that a person can quote, and its controls.

Every number in it is one of the results', with its interval; nothing is computed here but the wording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headscope.evidence.circuit.result import INPUT_NAMES, Circuit
from headscope.evidence.scan.result import HeadScore, Scan
from headscope.evidence.verify.result import HeadSet, Verification
from headscope.heads import HeadId
from headscope.records.common import Estimate

CANDIDATES = 5
"""Heads named where none does induction."""
SHOWN = 6
"""Heads named before the rest are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found."""

    sentence: str
    """To quote."""
    details: tuple[str, ...]
    """Its controls, each a sentence."""


def finding(scan: Scan, verification: Verification, circuit: Circuit | None) -> Finding:
    """The finding of these results, which are of one model."""
    name = verification.model.id
    if not verification.sets:
        return _nothing(name, scan, verification)
    head_set = verification.sets[0]
    does = "does" if len(head_set.heads) == 1 else "do"
    sentence = (
        f"In {name}, {_count(head_set.heads)} ({_names(head_set.heads)}) {does} induction: without "
        f"{'it' if len(head_set.heads) == 1 else 'them'} the loss on the second copy of repeated random tokens "
        "rises by "
        f"{_nats(head_set.delta_loss_nats, sign='')}{_senders(circuit)}{_largest_unknown(verification)}."
    )
    details = (*_controls(verification, head_set), *_relation(head_set), *_circuit(circuit), *_unknown(verification))
    return Finding(sentence=sentence, details=details)


def _nothing(name: str, scan: Scan, verification: Verification) -> Finding:
    found = scan.heads("induction") if any(role.name == "induction" for role in scan.roles) else []
    if found:
        heads = [score.head for score in found]
        whose = f"{_count(heads)} ({_names(heads)}) {'attends' if len(heads) == 1 else 'attend'} like one"
        sentence = f"In {name}, no head does induction: {whose}, but the second copy does not depend on that"
    else:
        best = _candidates(scan)[:1]
        score = [
            f"; the highest induction score is {one.mean:.2f}, {one.head}, by chance {one.chance:.2f}" for one in best
        ]
        sentence = f"In {name}, no head does induction{''.join(score)}"
    clean = verification.clean
    return Finding(
        sentence=f"{sentence}{_largest_unknown(verification)}.",
        details=(
            f"Its loss is {clean['second_copy'].mean:.2f} nats on the second copy and "
            f"{clean['first_copy'].mean:.2f} on the first.",
            *_best_of(scan),
        ),
    )


def _candidates(scan: Scan) -> list[HeadScore]:
    """Heads by their induction score, the highest first; none where the scan has no such role."""
    known = any(role.name == "induction" for role in scan.roles)
    return scan.ranked("induction")[:CANDIDATES] if known else []


def _best_of(scan: Scan) -> tuple[str, ...]:
    """The best candidates against chance and their controls."""
    best = _candidates(scan)
    if not best:
        return ()
    shown = [
        f"{one.head} {one.mean:.3f} (chance {one.chance:.3f}"
        f"{'' if one.control is None else f', control {one.control:.3f}'})"
        for one in best
    ]
    return (f"The best candidates by their induction score: {', '.join(shown)}.",)


def _largest_unknown(verification: Verification) -> str:
    """The head without a known role that matters most."""
    heads = [one for one in verification.of("matters") if one.delta_loss_nats is not None]
    if not heads or (delta := heads[0].delta_loss_nats) is None:
        return ""
    return f"; without {heads[0].head}, whose role is not known, that loss changes by {delta.mean:+.2f} nats"


def _unknown(verification: Verification) -> tuple[str, ...]:
    """The heads that matter without a known role, largest effect first."""
    heads = verification.of("matters")
    if not heads:
        return ()
    effects = [f"{one.head} ({_nats(one.delta_loss_nats)})" for one in heads[:SHOWN] if one.delta_loss_nats is not None]
    more = f" and {len(heads) - SHOWN} more" if len(heads) > SHOWN else ""
    return (f"The second copy's loss also changes without {', '.join(effects)}{more}: their role is not known.",)


def _controls(verification: Verification, head_set: HeadSet) -> tuple[str, ...]:
    first = (
        f"The loss on the first copy, which cannot be predicted from context, changes by {_nats(head_set.first_copy)}: "
        f"measured on {verification.controls.held_out_prompts} held-out prompts by "
        f"{verification.ablation['method']} ablation."
    )
    draws = verification.controls.random_heads
    if not draws:
        return first, "There is no other head in their layers to draw as a random control."
    low, high = (pick(draw.random_delta_loss_nats.mean for draw in draws) for pick in (min, max))
    n, of = len(draws[0].random_heads), len(head_set.heads)
    heads = "1 random head" if n == 1 else f"{n} random heads"
    if n < of:
        own = [draw.delta_loss_nats.mean for draw in draws]
        against = f", against {min(own):+.3f} to {max(own):+.3f} for {'one' if n == 1 else n} of the set"
    else:
        against = ""
    return first, (
        f"Taking out {heads} of the same layers instead changes the second copy's loss by {low:+.3f} to {high:+.3f} "
        f"nats in {len(draws)} draws{against}."
    )


def _relation(head_set: HeadSet) -> tuple[str, ...]:
    match head_set.relation:
        case "redundant":
            says = "They replace each other: ablated one by one, their effects add up to only"
        case "complementary":
            says = "They copy only together: taken out one by one, their effects add up to"
        case "independent":
            says = "They neither back each other up nor need each other: one by one their effects add up to"
        case "single":
            return ()
    return (f"{says} {_nats(head_set.sum_of_singles)}.",)


def _senders(circuit: Circuit | None) -> str:
    """Which head tells them where to look, or which heads, any of them."""
    sets: set[tuple[HeadId, ...]] = set()
    if circuit is not None:
        sets = {one.senders for one in circuit.sets if one.any_one_is_enough}
    if circuit is not None and len(sets) == 1 and len(circuit.sets) == len(circuit.receivers):
        them = "it" if _fed(circuit) == 1 else "them"
        return f"; any of {_names(sets.pop())} is enough to tell {them} where to look"
    best = _best_sender(circuit)
    return "" if best is None else f"; {best} tells {'it' if _fed(circuit) == 1 else 'them'} where to look"


def _best_sender(circuit: Circuit | None) -> HeadId | None:
    """The sender that is the strongest of every receiver's; None where there is no such head."""
    if circuit is None or not circuit.receivers:
        return None
    strongest: dict[HeadId, HeadId] = {}
    for edge in circuit.edges:
        if edge.any_of:
            continue
        strongest.setdefault(edge.receiver, edge.sender)
    senders = set(strongest.values())
    return senders.pop() if len(senders) == 1 and len(strongest) == len(circuit.receivers) else None


def _fed(circuit: Circuit | None) -> int:
    return 0 if circuit is None else len(circuit.receivers)


def _circuit(circuit: Circuit | None) -> tuple[str, ...]:
    sender = _best_sender(circuit)
    if circuit is None or sender is None:
        return ()
    fed = [edge for edge in circuit.edges if edge.sender == sender]
    shares = [edge.share for edge in fed]
    spread = f"{min(shares):.0%}" if len(shares) == 1 else f"{min(shares):.0%} to {max(shares):.0%}"
    routes = {edge.input for edge in fed}
    says = f"What {sender} writes carries {spread} of their attention to the right token"
    if routes != {"k"}:
        return (f"{says}, through their {' and '.join(INPUT_NAMES[route] for route in sorted(routes))}.",)
    through = max(abs(one.strongest_query.mean) for one in circuit.receivers if one.strongest_query is not None)
    return (f"{says}, through their keys; through their queries no sender moves it by more than {through:.3f}.",)


def _count(heads: Sequence[HeadId]) -> str:
    return "one head" if len(heads) == 1 else f"{len(heads)} heads"


def _names(heads: Sequence[HeadId]) -> str:
    names = [str(head) for head in heads[:SHOWN]]
    return ", ".join(names) + (f" and {len(heads) - SHOWN} more" if len(heads) > SHOWN else "")


def _nats(estimate: Estimate, *, sign: str = "+") -> str:
    low, high = estimate.ci95 or (estimate.mean, estimate.mean)
    interval = "" if estimate.ci95 is None else f" [{low:{sign}.2f}, {high:{sign}.2f}]"
    return f"{estimate.mean:{sign}.2f} nats{interval}"
