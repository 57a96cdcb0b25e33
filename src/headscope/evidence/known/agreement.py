"""Whether an atlas finds what was published: agrees, differs, or not tested.

    agrees       the head holds the role, `primary` or `secondary`, in the kind that was published
    differs      it was tested and does not: no score, a correlate, or a role that works the other way
    not_tested   the role was not asked of the model, the atlas does not know it, or no intervention was made

That an atlas differs does not show that the source is wrong: its prompts are others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from headscope.errors import ArgumentError, brief
from headscope.evidence.atlas.finding import RoleFinding
from headscope.evidence.atlas.result import Atlas
from headscope.evidence.known.lists import Agreement, KnownHead, heads_named, known_heads, known_models

FOUND = ("primary", "secondary")
"""Outcomes with which a head does what was published of it."""


def known(model: str | Path | None = None) -> tuple[KnownHead, ...]:
    """Published heads, and whether an atlas agrees.

    Args:
        model: A hub id, a folder with a model's `config.json`, or a folder or file with an atlas, which is compared. By
            default the lists of all models.

    Raises:
        ArgumentError: no list is of this model.
    """
    if model is None:
        return tuple(head for one in known_models() for head in one.heads)
    place = Path(model)
    if (place / "atlas.json").is_file() or place.suffix == ".json":
        atlas = Atlas.load(place)
        found, name = compared(known_heads(atlas.model), atlas.findings, atlas.not_asked), atlas.model.id
    else:
        found, name = heads_named(str(model)), str(model)
    if not found:
        names = ", ".join(one.name for one in known_models())
        raise ArgumentError(f"no list of published heads is of {brief(repr(name))}; there are lists of {names}.")
    return found


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
