"""Negative mover: attends where a name mover does, and lowers the name.

Score, chance, control and tests are those of `name_mover`, the tests with the other sign: positive where the head works
against the name. It is an `interferer` for `name_mover`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.roles.name_mover import score, tests
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import Sample
from headscope.heads import HeadId


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    return tests(runner, heads, -1)


ROLE = Role(
    name="negative_mover",
    order=160,
    letter="V",
    colour="#aa4499",
    sentence="attends to the name that is named once, and lowers it",
    look_alike="a name mover, which raises it; a head that tells others the name",
    score=score,
    test=_test,
    score_passes=0.0,
    test_passes=1.0,
)
