"""Current token: attends to the token itself, and what it reads there matters."""

from __future__ import annotations

from headscope.evidence.atlas.looking import looking
from headscope.evidence.atlas.role import Role

ROLE = Role(
    name="current_token",
    order=40,
    letter="C",
    colour="#8c6d31",
    sentence="attends to the token itself, and what it reads there matters",
    look_alike="a head that looks at itself and matters for another reason: only what it reads at itself is dropped",
    **looking("current_token"),
    score_passes=0.0,
)
