"""S-inhibition: at the end it attends to the repeated name's later place, and turns the movers away from that name.

score       attention from the last token to the name's second occurrence (`headscope.evidence.atlas.ioi`)
chance      a third of what the head gives to all three names
control     the same place where it holds a third name
zero, mean  drop of logit(named once) - logit(repeated)
specific    the same drop when the head no longer reads that place
transfer    the same drop when the head's z at the last token is that of the corrupt prompt that repeats the other name
look_alike_suppression    half the transfer, minus what of it remains while all heads above keep their z: a head that
            lowers the repeated name itself needs no mover
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headscope.evidence.atlas.ioi import DIRECT, attention_to, objects, tested
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import Sample
from headscope.heads import HeadId


def _score(runner: RoleRunner) -> Scored:
    return attention_to("again", runner, {"name named once": ("once",)})


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    asked = objects(runner)
    found: dict[HeadId, dict[str, Sample]] = {}
    for head, one in tested(runner, asked, heads, asked.repeated).items():
        alike = DIRECT * np.abs(one.moved) - np.abs(one.directly)
        found[head] = {**one.samples, "look_alike_suppression": Sample(values=alike)}
    return found


ROLE = Role(
    name="s_inhibition",
    order=170,
    letter="H",
    colour="#88ccee",
    label="S-inhibition",
    sentence="attends to the later place of a repeated name, and turns the movers away from that name",
    look_alike="a head that lowers the repeated name by itself: its effect stays while heads above keep their output",
    score=_score,
    test=_test,
    score_passes=0.0,
    test_passes=1.0,
)
