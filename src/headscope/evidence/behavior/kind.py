"""The search for behaviour heads as a kind of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.evidence.kinds import Kind

if TYPE_CHECKING:
    from headscope.evidence.behavior.result import BehaviorResult


def _result() -> type[BehaviorResult]:
    from headscope.evidence.behavior.result import BehaviorResult

    return BehaviorResult


KIND = Kind(name="behavior", order=50, schema="headscope.behavior/1", result=_result)
