"""Emergence over the checkpoints of a run as a kind of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.evidence.kinds import Kind

if TYPE_CHECKING:
    from headscope.evidence.emergence.measure import Emergence


def _result() -> type[Emergence]:
    from headscope.evidence.emergence.measure import Emergence

    return Emergence


KIND = Kind(name="emergence", order=60, schema="headscope.emergence/1", result=_result)
