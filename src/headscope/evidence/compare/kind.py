"""The comparison as a kind of evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headscope.evidence.kinds import Kind

if TYPE_CHECKING:
    from headscope.evidence.compare.result import Comparison


def _result() -> type[Comparison]:
    from headscope.evidence.compare.result import Comparison

    return Comparison


KIND = Kind(
    name="compare",
    order=70,
    schema="headscope.compare/1",
    result=_result,
    section="What changed",
)
