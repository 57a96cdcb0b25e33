"""Previous token: attends to the token before, and later heads need what it moves."""

from __future__ import annotations

from headscope.evidence.atlas.looking import looking
from headscope.evidence.atlas.role import Role

ROLE = Role(
    name="previous_token",
    order=20,
    letter="P",
    colour="#009e73",
    sentence="attends to the token before, and moves on what it reads there",
    look_alike="a head that looks there and matters for another reason: only what it reads there is dropped",
    **looking("previous_token"),
    score_passes=0.0,
)
