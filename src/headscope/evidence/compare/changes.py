"""Two scans side by side, once it is known which head is which and how far apart their scores are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headscope.evidence.compare.result import RULE, HeadChange, HeadRoles, How, Match, RoleChange, Side, Status
from headscope.evidence.scan.result import Scan
from headscope.heads import HeadId
from headscope.records.common import Estimate
from headscope.stats import benjamini_hochberg

Place = tuple[HeadId, str]
"""A head of the first model and a role."""


def label_of(index: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    name = chr(ord("A") + index % 26)
    return name if index < 26 else label_of(index // 26 - 1) + name


def heads_of(scan: Scan) -> list[HeadId]:
    """Every head, in order."""
    return list(dict.fromkeys(score.head for score in scan.scores))


def side_of(label: str, scan: Scan) -> Side:
    """One of the models."""
    scores: dict[HeadId, dict[str, float]] = {}
    for score in scan.scores:
        scores.setdefault(score.head, {})[score.detector] = score.mean
    return Side(
        label=label,
        model=scan.model,
        provenance=scan.provenance,
        probe=dict(scan.probe),
        heads=tuple(HeadRoles(head=head, scores=found) for head, found in scores.items()),
        roles={role.name: tuple(score.head for score in scan.heads(role.name)) for role in scan.roles},
    )


def head_changes(
    one: Scan,
    two: Scan,
    counterparts: Mapping[HeadId, tuple[HeadId, How]],
    found: Mapping[Place, tuple[Estimate, float]],
    match: Mapping[HeadId, Match] | None = None,
) -> tuple[HeadChange, ...]:
    """Every head of the first model beside its counterpart.

    Args:
        one: The first model's scan.
        two: The second's.
        counterparts: Of heads of the first model, and how that was found.
        found: Second minus first, and its p.
        match: How alike a head and its counterpart attend.
    """
    q = dict(zip(found, benjamini_hochberg(np.asarray([p for _, p in found.values()])), strict=True))
    means = [{(score.head, score.detector): score.mean for score in scan.scores} for scan in (one, two)]
    has = [{(score.head, role.name) for role in scan.roles for score in scan.heads(role.name)} for scan in (one, two)]
    roles = list(dict.fromkeys(role for _, role in found))
    changes: list[HeadChange] = []
    for head in heads_of(one):
        if head not in counterparts:
            changes.append(HeadChange(head=head, counterpart=None, how=None, match=None, roles=()))
            continue
        other, how = counterparts[head]
        made: list[RoleChange] = []
        for role in roles:
            difference, value = found[head, role][0], float(q[head, role])
            changed = value <= RULE.false_discovery and abs(difference.mean) >= RULE.difference
            made.append(
                RoleChange(
                    role=role,
                    a=means[0][head, role],
                    b=means[1][other, role],
                    difference=difference,
                    q_value=value,
                    changed=changed,
                    status=_status((head, role) in has[0], (other, role) in has[1], changed),
                )
            )
        alike = None if match is None else match.get(head)
        changes.append(HeadChange(head=head, counterpart=other, how=how, match=alike, roles=tuple(made)))
    return tuple(changes)


def unlike(one: Scan, two: Scan) -> list[str]:
    """What scans say that differs beside the weights."""
    pairs = [
        *((name, getattr(one.model, name), getattr(two.model, name)) for name in ("id", "revision", "family")),
        *(
            (name, getattr(one.model, name), getattr(two.model, name))
            for name in ("n_layers", "n_heads", "n_kv_heads", "n_embeddings")
        ),
        *((name, getattr(one.provenance, name), getattr(two.provenance, name)) for name in ("dtype", "device")),
    ]
    return [f"{name} {ours}, {theirs}" for name, ours, theirs in pairs if ours != theirs]


def _status(before: bool, after: bool, changed: bool) -> Status:
    if before == after:
        return "kept" if before else "none"
    if not changed:
        return "undecided"
    return "lost" if before else "gained"
