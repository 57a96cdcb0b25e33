"""The self-check as a result: do our numbers agree with the model's own forward pass?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headscope.model.load import Opened
from headscope.model.selfcheck import RoutedCheck
from headscope.records.codec import encode
from headscope.records.common import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the self-check found of one model."""

    model: ModelInfo
    """Which model, the verdict and its reason."""
    max_abs_diff: float | None
    """Largest difference of outputs, ours against the model's own; None where ours did not run."""
    path: str | None
    """`interface` or `hooks`: how attention is reached; None if it cannot be."""
    kernels: tuple[str, ...]
    """What computed attention in the check."""

    def to_dict(self) -> dict[str, Any]:
        """The document `headscope.check/1`, JSON-ready."""
        return {
            "schema": "headscope.check/1",
            "support": self.model.support,
            "reason": self.model.reason,
            "max_abs_diff": self.max_abs_diff,
            "path": self.path,
            "kernels": list(self.kernels),
            "model": encode(self.model),
        }


def agreement(model: Opened) -> Agreement:
    """What the check at loading found; `open_model` also gives models that it found unsupported."""
    check = model.check
    return Agreement(
        model=ModelInfo.of(model),
        max_abs_diff=check.max_abs_diff,
        path=check.route.path if isinstance(check, RoutedCheck) else None,
        kernels=check.kernels,
    )
