"""Duplicate token: attends to earlier copies of the current token, and what it reads there matters."""

from __future__ import annotations

from headscope.evidence.atlas.looking import looking
from headscope.evidence.atlas.role import Role

ROLE = Role(
    name="duplicate_token",
    order=30,
    letter="D",
    colour="#e69f00",
    sentence="attends to earlier copies of the token, and what it reads there matters",
    look_alike="a fixed offset, or places where copies often are: the control has the same places, and no copies",
    **looking("duplicate_token"),
    score_passes=0.0,
)
