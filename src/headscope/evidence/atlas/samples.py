"""What asking a role of a head gives: values prompt by prompt, or the reason why it cannot be asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Samples = Float[np.ndarray, " prompt"]
"""One value for each prompt, in nats; positive: the head serves the role."""


class NotAsked(Exception):
    """A role cannot be asked of this model; the message is the reason, one line, without a full stop."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """One intervention on one head, prompt by prompt."""

    values: Samples
    """See `Samples`; for a test of equivalence the change itself."""
    within_nats: float | None = None
    """For a test of equivalence its bound; None for a test of an effect."""
