"""Whether an atlas finds what was published: agrees, differs, or not tested.

    agrees       the head holds the role, `primary` or `secondary`, in the kind that was published
    differs      it was tested and does not: no score, a correlate, or a role that works the other way
    not_tested   the role was not asked of the model, the atlas does not know it, or no intervention was made

That an atlas differs does not show that the source is wrong: its prompts are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from headscope.evidence.known.lists import Agreement, KnownHead

if TYPE_CHECKING:
    from headscope.evidence.atlas.result import RoleFinding

FOUND = ("primary", "secondary")
"""Outcomes with which a head does what was published of it."""


def compared(
    heads: Sequence[KnownHead], findings: Sequence[RoleFinding], not_asked: Mapping[str, str]
) -> tuple[KnownHead, ...]:
    """Published heads with what an atlas says of each.

    Args:
        heads: Of the atlas's model.
        findings: The atlas's, for all heads and roles.
        not_asked: Roles that could not be asked, and why.
    """
    of = {(one.head, one.role): one for one in findings}
    asked = {one.role for one in findings}
    made: list[KnownHead] = []
    for one in heads:
        finding = of.get((one.head, one.role))
        if finding is None and one.role in asked:
            made.append(replace(one, why=f"the atlas has no head {one.head}"))
        elif finding is None:
            made.append(replace(one, why=not_asked.get(one.role, f"{one.role} was not asked")))
        else:
            agreement, why = _judged(one, finding)
            made.append(replace(one, agreement=agreement, why=why))
    return tuple(made)


def _judged(known: KnownHead, finding: RoleFinding) -> tuple[Agreement, str]:
    score = f"score {finding.score.mean:.2f}"
    if finding.outcome is None:
        return "not_tested", f"{score}; no intervention was tried"
    kind = "" if finding.variant is None else f", {finding.variant}"
    found = finding.outcome in FOUND and known.variant in (None, finding.variant)
    return "agrees" if found else "differs", f"{finding.outcome}{kind}; {score}"
