"""The atlas as a kind of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.evidence.kinds import Kind

if TYPE_CHECKING:
    from headscope.evidence.atlas.result import Atlas


def _result() -> type[Atlas]:
    from headscope.evidence.atlas.result import Atlas

    return Atlas


KIND = Kind(name="atlas", order=80, schema="headscope.atlas/1", result=_result, section="Atlas")
