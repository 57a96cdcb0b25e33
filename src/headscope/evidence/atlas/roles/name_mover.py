"""Name mover: at the end of a sentence about two people it attends to the one named once, and says that name.

    score       attention from the last token to the name that is named once (`headscope.evidence.atlas.ioi`)
    chance      a third of what the head gives to all three names
    control     the same place where three names are given and none repeats
    zero, mean  drop of logit(named once) - logit(repeated)
    specific    the same drop when the head no longer reads that name
    transfer    the same drop when the head's z at the last token is that of the corrupt prompt, which repeats the
                other name
    look_alike_relay    what of the transfer remains while all heads above keep their z, beyond half of it: a head that
                tells other heads the name moves nothing by itself

`interferer`: it looks there and lowers the name; see `negative_mover`. A backup, which is not needed and transfers, is
`secondary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headscope.evidence.atlas.ioi import DIRECT, attention_to, objects, tested
from headscope.evidence.atlas.role import Role, Scored
from headscope.evidence.atlas.runner import RoleRunner
from headscope.evidence.atlas.samples import Sample
from headscope.heads import HeadId


def score(runner: RoleRunner) -> Scored:
    """Attention to the name that is named once."""
    return attention_to("once", runner, {"repeated name": ("again", "before")})


def tests(runner: RoleRunner, heads: Sequence[HeadId], sign: int) -> Mapping[HeadId, Mapping[str, Sample]]:
    """The tests of a head that raises the name (sign 1) or lowers it (-1)."""
    asked = objects(runner)
    found: dict[HeadId, dict[str, Sample]] = {}
    for head, one in tested(runner, asked, heads, asked.named_once).items():
        found[head] = {name: Sample(values=sign * sample.values) for name, sample in one.samples.items()}
        # Along the sign of the whole effect, so that a head of the other sign is an interferer and no look-alike.
        way = np.sign(one.moved.mean()) or 1.0
        found[head]["look_alike_relay"] = Sample(values=way * (one.directly - DIRECT * one.moved))
    return found


def _test(runner: RoleRunner, scored: Scored, heads: Sequence[HeadId]) -> Mapping[HeadId, Mapping[str, Sample]]:
    return tests(runner, heads, 1)


ROLE = Role(
    name="name_mover",
    order=150,
    letter="M",
    colour="#999933",
    sentence="attends to the name that occurs once, and raises it",
    look_alike="a head that tells others the name: what it moves must reach the logits while heads above keep their "
    "output; a head for one place, by the control of three names",
    score=score,
    test=_test,
    score_passes=0.4,
    test_passes=1.0,
)
