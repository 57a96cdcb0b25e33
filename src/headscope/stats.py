"""Intervals of means over prompts.

Prompts are the independent draws; tokens within one are not. The interval is Student's t on per-prompt scores:

    mean +- t(0.975, n - 1) * s / sqrt(n)

Its coverage is measured in tests/test_coverage.py. It misleads for a handful of prompts whose scores are far from
normal.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float


def t_quantile_975(degrees: int) -> float:
    """The 0.975 quantile of Student's t with a whole number of degrees of freedom, to 1e-9.

    Solved by bisection on the exact distribution function for whole degrees (Abramowitz and Stegun 26.7.3-4).
    """
    low, high = 1.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_mass(middle, degrees) < 0.95 else (low, middle)
    return (low + high) / 2


def _central_mass(t: float, degrees: int) -> float:
    """P(|T| < t), Abramowitz and Stegun 26.7.3 (odd degrees) and 26.7.4 (even)."""
    angle = math.atan(t / math.sqrt(degrees))
    cos2 = math.cos(angle) ** 2
    odd = degrees % 2
    term, total = 1.0, 0.0
    for step in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= cos2 * (step + 1) / (step + 2)
    if not odd:
        return math.sin(angle) * total
    return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)


def mean_intervals(samples: Float[np.ndarray, " prompt *rest"]) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean over prompts and the half-width of its 95% interval; half-widths are None for one prompt.

    Args:
        samples: One value per prompt, for any number of things at once. Differences of paired values give paired
            intervals.
    """
    n = len(samples)
    assert n > 0, "a mean needs at least one prompt"
    mean = np.asarray(samples.mean(axis=0))
    if n == 1:
        return mean, None
    return mean, np.asarray(t_quantile_975(n - 1) * samples.std(axis=0, ddof=1) / math.sqrt(n))
