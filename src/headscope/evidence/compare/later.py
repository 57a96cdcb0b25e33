"""Verdicts, edges and the roles of the atlas of two models, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headscope.evidence.atlas.finding import HELD
from headscope.evidence.atlas.result import Atlas
from headscope.evidence.circuit.result import Circuit
from headscope.evidence.compare.result import EdgeChange, OutcomeChange, Status, VerdictChange
from headscope.evidence.verify.result import Verification
from headscope.heads import HeadId
from headscope.records.common import apart


def verdict_changes(
    one: Verification, two: Verification, counterparts: Mapping[HeadId, HeadId]
) -> tuple[VerdictChange, ...]:
    """Heads whose verdict differs, or that have a role in either model."""
    of_two = {found.head: found for found in two.heads}
    made: list[VerdictChange] = []
    for before in one.heads:
        after = of_two.get(counterparts.get(before.head, HeadId(-1, -1)))
        if after is None:
            continue
        role = one.meaning(before.verdict).has_role or two.meaning(after.verdict).has_role
        if before.verdict == after.verdict and not role:
            continue
        made.append(
            VerdictChange(
                head=before.head,
                counterpart=after.head,
                a=before.verdict,
                b=after.verdict,
                changed=before.verdict != after.verdict,
                delta_a=before.delta_loss_nats,
                delta_b=after.delta_loss_nats,
                apart=apart(before.delta_loss_nats, after.delta_loss_nats),
                reasons_a=before.reasons,
                reasons_b=after.reasons,
            )
        )
    return tuple(made)


def edge_changes(one: Circuit, two: Circuit, counterparts: Mapping[HeadId, HeadId]) -> tuple[EdgeChange, ...]:
    """Every edge of either model, by the first model's names; of heads that both have."""
    back = {other: head for head, other in counterparts.items()}
    before = {(edge.sender, edge.receiver, edge.input): edge for edge in one.edges}
    after = {
        (back[edge.sender], back[edge.receiver], edge.input): edge
        for edge in two.edges
        if edge.sender in back and edge.receiver in back
    }
    made: list[EdgeChange] = []
    for place in sorted({*before, *after}):
        sender, receiver, through = place
        ours, theirs = before.get(place), after.get(place)
        status: Status = "kept" if ours and theirs else "lost" if ours else "gained"
        made.append(
            EdgeChange(
                sender=sender,
                receiver=receiver,
                input=through,
                share_a=None if ours is None else ours.share,
                share_b=None if theirs is None else theirs.share,
                status=status,
            )
        )
    return tuple(made)


def outcome_changes(one: Atlas, two: Atlas, counterparts: Mapping[HeadId, HeadId]) -> tuple[OutcomeChange, ...]:
    """Heads and roles that either model holds, of roles that both were asked for; by head, then role."""
    of_two = {(found.head, found.role): found for found in two.findings}
    made: list[OutcomeChange] = []
    for before in one.findings:
        other = counterparts.get(before.head)
        after = None if other is None else of_two.get((other, before.role))
        if other is None or after is None:
            continue
        had, has = before.outcome in HELD, after.outcome in HELD
        if not (had or has):
            continue
        status: Status = "kept" if had and has else "lost" if had else "gained"
        made.append(
            OutcomeChange(
                head=before.head,
                counterpart=other,
                role=before.role,
                a=before.outcome,
                b=after.outcome,
                score_a=before.score,
                score_b=after.score,
                status=status,
                apart=apart(before.score, after.score),
            )
        )
    return tuple(sorted(made, key=lambda one: one.head))


def later_changes(
    verdicts: Sequence[VerdictChange] | None,
    edges: Sequence[EdgeChange] | None,
    outcomes: Sequence[OutcomeChange] | None = None,
) -> list[str]:
    """What changed of them, in words."""
    parts: list[str] = []
    if verdicts is not None:
        changed = [one for one in verdicts if one.changed]
        named = "; ".join(f"{one.head} {_words(one.a)}, now {_words(one.b)}" for one in changed[:3])
        count = f"{len(changed)} verdict{'' if len(changed) == 1 else 's'} changed"
        parts.append(f"{count}: {named}" if changed else "no verdict changed")
    if edges is not None:
        gained, lost = ([one for one in edges if one.status == status] for status in ("gained", "lost"))
        parts.append(f"{len(gained)} edges gained, {len(lost)} lost")
    if outcomes is not None:
        changed = [one for one in outcomes if one.status != "kept"]
        named = "; ".join(f"{one.head} {one.status} {_words(one.role)}" for one in changed[:3])
        count = f"{len(changed)} role{'' if len(changed) == 1 else 's'} of the atlas gained or lost"
        parts.append(f"{count}: {named}" if changed else "no role of the atlas was gained or lost")
    return parts


def _words(verdict: str) -> str:
    return verdict.replace("_", " ")
