"""Intervals of means over prompts, and tests of many means at once.

Prompts are the independent draws; tokens within one are not. The interval is Student's t on per-prompt scores:

    mean +- t(0.975, n - 1) * s / sqrt(n)

Its coverage is measured in tests/test_coverage.py. It misleads for a handful of prompts whose scores are far from
normal.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from headscope.errors import NonFiniteError


@lru_cache
def t_quantile(degrees: int, *, error: float = 0.05) -> float:
    """The t that Student's T, with a whole number of degrees of freedom, exceeds in size with probability `error`.

    Solved by bisection on the exact distribution function for whole degrees (Abramowitz and Stegun 26.7.3-4), to a
    relative 1e-9 where `error` is above 1e-12.
    """
    low, high = 0.0, 1.0
    while two_sided_p(high, degrees) > error:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, degrees) > error else (low, middle)
    return (low + high) / 2


def two_sided_p(t: float, degrees: int) -> float:
    """P(|T| >= t) of Student's t with a whole number of degrees of freedom."""
    return max(0.0, 1 - _central_mass(abs(t), degrees))


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
    return mean, np.asarray(t_quantile(n - 1) * samples.std(axis=0, ddof=1) / math.sqrt(n))


def p_values(samples: Float[np.ndarray, " prompt *rest"]) -> np.ndarray:
    """Two-sided p of Student's t test that each mean over prompts is zero, for any number of things at once.

    Without any spread p is 0, or 1 where the mean is zero itself. One prompt says nothing: p is 1.

    Raises:
        NonFiniteError: a sample is NaN or infinite.
    """
    if not np.isfinite(samples).all():
        raise NonFiniteError("what is to be tested holds NaN or infinity; load the model in float32.")
    mean, half = mean_intervals(samples)
    if half is None:
        return np.ones_like(mean)
    degrees = len(samples) - 1
    spread = half / t_quantile(degrees)
    sizes = np.abs(mean).ravel()
    tests = [
        (1.0 if size == 0 else 0.0) if error == 0 else two_sided_p(size / error, degrees)
        for size, error in zip(sizes.tolist(), spread.ravel().tolist(), strict=True)
    ]
    return np.asarray(tests).reshape(mean.shape)


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """q-values: calling every test with q <= a significant keeps the expected share of false calls at or below a.

    q_(i) = min over j >= i of  p_(j) * n / j,  p ascending

    Reference:
        Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57. Holds for independent or positively dependent tests.
    """
    n = len(p)
    order = np.argsort(p)
    scaled = p[order] * n / np.arange(1, n + 1)
    q = np.empty(n)
    q[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return q


def ratio_interval(
    numerator: Float[np.ndarray, " prompt"], denominator: Float[np.ndarray, " prompt"]
) -> tuple[float, tuple[float, float] | None]:
    """Ratio of two means over the same prompts, and its 95% interval (Fieller).

    a, b per prompt, A, B their means, R = A / B; the interval holds every r at which a - r b may have the mean zero:

        |A - r B| <= t(0.975, n - 1) * se(a - r b)

    Where a = R b at every prompt, the interval is R alone, however much b scatters. It is not symmetric about R.

    Returns:
        R, and its interval; None for one prompt, or where B is not significantly different from zero at 5%: the
        interval would have no ends.

    Raises:
        NonFiniteError: a value is NaN or infinite, or the denominators' mean is zero.

    Reference:
        Fieller 1954, J. R. Stat. Soc. B 16. Exact for jointly normal pairs.
    """
    n = len(numerator)
    assert n == len(denominator) > 0, "a ratio needs the same prompts twice, and at least one"
    if not (np.isfinite(numerator).all() and np.isfinite(denominator).all()) or denominator.mean() == 0:
        raise NonFiniteError("a ratio of means needs finite numbers and a denominator other than zero.")
    ratio = float(numerator.mean() / denominator.mean())
    if n == 1:
        return ratio, None
    # With u = r - R and e = a - R b, of mean zero:  (u B)^2 <= t^2 (s_ee - 2 u s_eb + u^2 s_bb) / n,  a quadratic in u.
    rest = numerator - ratio * denominator
    (s_ee, s_eb), (_, s_bb) = np.cov(rest, denominator) * (t_quantile(n - 1) ** 2 / n)
    square = float(denominator.mean()) ** 2 - s_bb
    if square <= 0:
        return ratio, None
    middle = -s_eb / square
    half = math.sqrt(max(0.0, middle**2 + s_ee / square))
    return ratio, (ratio + float(middle) - half, ratio + float(middle) + half)
