"""The self-check as a result: do our numbers agree with the model's own forward pass?"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar

from headscope.model.load import Opened
from headscope.model.selfcheck import RoutedCheck
from headscope.records.codec import encode
from headscope.records.common import ModelInfo
from headscope.records.document import WrittenDocument


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement(WrittenDocument):
    """What the self-check found of one model."""

    schema: ClassVar[str] = "headscope.check/1"
    model: ModelInfo
    """Which model, the verdict and its reason."""
    max_abs_diff: float | None
    """Largest difference of outputs, ours against the model's own; None where ours did not run or gave NaN."""
    path: str | None
    """`interface` or `hooks`: how attention is reached; None if it cannot be."""
    kernels: tuple[str, ...]
    """What computed attention in the check."""

    def body(self) -> dict[str, Any]:
        """What the document holds: the verdict and its reason first, which are the model's."""
        return {
            "support": self.model.support,
            "reason": self.model.reason,
            "max_abs_diff": self.max_abs_diff,
            "path": self.path,
            "kernels": list(self.kernels),
            "model": encode(self.model),
        }


def agreement(model: Opened) -> Agreement:
    """What the check at loading found; `open_model` also gives models that it found unsupported."""
    check, difference = model.check, model.check.max_abs_diff
    return Agreement(
        model=ModelInfo.of(model),
        max_abs_diff=None if difference is None or not isfinite(difference) else difference,
        path=check.route.path if isinstance(check, RoutedCheck) else None,
        kernels=check.kernels,
    )
