"""First token: attends to the first token, and what it reads there matters. Otherwise it only rests: `sink`."""

from __future__ import annotations

from headscope.evidence.atlas.looking import looking
from headscope.evidence.atlas.role import Role

ROLE = Role(
    name="first_token",
    order=60,
    letter="F",
    colour="#6e7f91",
    sentence="attends to the first token, and what it reads there matters",
    look_alike="a head that merely rests there: nothing changes when what it reads at the first token is dropped",
    **looking("first_token"),
    explains=False,
    score_passes=0.0,
)
