"""Intervals of means over prompts, and tests of many means at once.

Prompts are the independent draws; tokens within one are not. A score is a share of attention: near 0 and near 1 its
values over prompts are skewed, and Student's t misses on one side. So an interval is the union of two:

    Student's t        mean -+ t s / sqrt(n)
    Hall's             mean - g(+-t) s / sqrt(n)          g the inverse of  T + a T^2 + a^2 T^3 / 3 + a / 2
                                                          a = SKEW * skewness / (3 sqrt(n))

with t = t(0.975, n - 1). The second undoes the skewness of the studentised mean to the order 1 / sqrt(n): it reaches
further on the side of the long tail. Both move with the data when these are shifted, scaled or turned round, and
neither draws random numbers. Yes-or-no answers have Wilson's interval instead, which is never of no width.

`python -m benchmarks.coverage` measures how often these hold the true mean, head by head, on trained models. They
mislead for a handful of prompts, and for a head that shows what it does in less than one prompt in twenty: prompts that
were not drawn leave no trace in those that were. Differences of a loss therefore have a least width.

Reference:
    Hall 1992, J. R. Stat. Soc. B 54, 221-228. Wilson 1927, J. Am. Stat. Assoc. 22, 209-212.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from headscope.errors import NonFiniteError, ShapeError

GRID, FURTHEST = 65, 64
"""Places at which an end of a ratio's interval is looked for, and the last of them in units of Student's end."""

SKEW = 1.25
"""Times the sample's own skewness: that of a few dozen values falls short of a skewed distribution's."""

LOSS_RESOLUTION = 0.003
"""Nats. A change of 0.3 nats in one prompt of a hundred moves the mean by so much, and 32 prompts miss it in 0.72 of
all draws (0.99^32): no interval of a difference of losses claims to know it better. It is a third of the least effect
that a verdict goes by."""

Interval = tuple[np.ndarray, np.ndarray]
"""Lower and upper ends."""


class Summary(NamedTuple):
    """What is known of a sample."""

    mean: float
    """Its mean."""
    error: float | None
    """Standard error of the mean; None where it is not known."""
    degrees: int
    """Degrees of freedom of the error."""


@lru_cache
def t_quantile(degrees: int | float, *, error: float = 0.05) -> float:
    """Two-sided quantile of Student's t: |T| exceeds it with probability `error`; `degrees` may be a fraction."""
    from scipy.special import stdtrit

    return -float(stdtrit(degrees, error / 2))


def two_sided_p(t: float, degrees: int) -> float:
    """P(|T| >= t) of Student's t with a whole number of degrees of freedom."""
    from scipy.special import stdtr

    return 2 * float(stdtr(degrees, -abs(t)))


def mean_intervals(samples: Float[np.ndarray, " prompt *rest"]) -> tuple[np.ndarray, Interval | None]:
    """Mean over prompts and the ends of its 95% interval; no interval from one prompt.

    Args:
        samples: One value per prompt, for any number of things at once. Differences of paired values give paired
            intervals.
    """
    n = len(samples)
    assert n > 0, "a mean needs at least one prompt"
    mean = np.asarray(samples.mean(axis=0))
    if n == 1:
        return mean, None
    spread = np.asarray(samples.std(axis=0, ddof=1))
    error, (least, most) = spread / math.sqrt(n), _studentised(samples - mean, spread)
    return mean, (np.asarray(mean - most * error), np.asarray(mean - least * error))


def share_interval(samples: Float[np.ndarray, " prompt"]) -> tuple[float, float]:
    """Wilson's 95% interval of a share of yes among yes-or-no answers, or of the mean of such shares.

    For means of several answers it is too wide rather than too narrow: their variance is taken for p (1 - p).
    """
    n, share = len(samples), float(samples.mean())
    assert n > 0, "a share needs at least one answer"
    z2 = 1.959964**2
    center, half = share + z2 / (2 * n), math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n)
    return max(0.0, (center - half) / (1 + z2 / n)), min(1.0, (center + half) / (1 + z2 / n))


def p_values(samples: Float[np.ndarray, " prompt *rest"]) -> np.ndarray:
    """Two-sided p of Student's t test that each mean over prompts is zero, for any number of things at once.

    Without any spread p is 0, or 1 where the mean is zero itself. One prompt says nothing: p is 1.

    Raises:
        NonFiniteError: a sample is NaN or infinite.
    """
    from scipy.special import stdtr

    if not np.isfinite(samples).all():
        raise NonFiniteError("what is to be tested holds NaN or infinity; load the model in a wider dtype.")
    n, mean = len(samples), np.asarray(samples.mean(axis=0))
    if n == 1:
        return np.ones_like(mean)
    error = samples.std(axis=0, ddof=1) / math.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(n - 1, -np.abs(mean) / error)
    return np.asarray(np.where(error > 0, p, np.where(mean == 0, 1.0, 0.0)))


def two_sample(
    first: Float[np.ndarray, " prompt"], second: Float[np.ndarray, " other"]
) -> tuple[float, tuple[float, float] | None, float]:
    """Mean of the second sample minus that of the first, its 95% interval and two-sided p (Welch).

    No interval from a sample of one, where p is 1. Without any spread p is 0, or 1 where the means are equal.

    Reference:
        Welch 1947, Biometrika 34.
    """
    return two_summaries(*(_summarised(one) for one in (first, second)))


def two_summaries(first: Summary, second: Summary) -> tuple[float, tuple[float, float] | None, float]:
    """The same of samples of which only the mean and its standard error are known."""
    from scipy.special import stdtr, stdtrit

    apart = second.mean - first.mean
    if first.error is None or second.error is None:
        return apart, None, 1.0
    parts = [(one.error**2, one.degrees) for one in (first, second) if one.error is not None]
    error = math.sqrt(sum(variance for variance, _ in parts))
    if error == 0:
        return apart, (apart, apart), 1.0 if apart == 0 else 0.0
    degrees = error**4 / sum(variance**2 / degrees for variance, degrees in parts)
    half = -float(stdtrit(degrees, 0.025)) * error
    return apart, (apart - half, apart + half), 2 * float(stdtr(degrees, -abs(apart) / error))


def _summarised(sample: Float[np.ndarray, " prompt"]) -> Summary:
    n = len(sample)
    error = math.sqrt(float(sample.var(ddof=1)) / n) if n > 1 else None
    return Summary(mean=float(sample.mean()), error=error, degrees=n - 1)


def equivalence_p(samples: Float[np.ndarray, " prompt *rest"], within: float) -> np.ndarray:
    """P of two one-sided t tests that each mean over prompts is inside +-within, for any number of things at once.

    p = max(P(T >= (mean + within) / error), P(T >= (within - mean) / error))

    A small p shows that there is no effect of that size; a large one shows nothing, least of all an effect. Without
    any spread p is 0 inside and 1 outside. One prompt says nothing: p is 1.

    Raises:
        ShapeError: `within` is not positive.
        NonFiniteError: a sample is NaN or infinite.

    Reference:
        Schuirmann 1987, J. Pharmacokinet. Biopharm. 15, 657-680.
    """
    from scipy.special import stdtr

    if not within > 0:
        raise ShapeError(f"within={within}; an equivalence test needs a positive bound, like 0.01 nats.")
    if not np.isfinite(samples).all():
        raise NonFiniteError("what is to be tested holds NaN or infinity; load the model in a wider dtype.")
    n, mean = len(samples), np.asarray(samples.mean(axis=0))
    if n == 1:
        return np.ones_like(mean)
    error = np.asarray(samples.std(axis=0, ddof=1) / math.sqrt(n))
    room = within - np.abs(mean)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = stdtr(n - 1, -room / error)
    return np.asarray(np.where(error > 0, p, np.where(room > 0, 0.0, 1.0)))


def benjamini_hochberg(p: Float[np.ndarray, " test"]) -> Float[np.ndarray, " test"]:
    """q-values: calling every test with q <= a significant keeps the expected share of false calls at or below a.

    q_(i) = min over j >= i of  p_(j) * n / j,  p ascending

    Reference:
        Benjamini and Hochberg 1995, J. R. Stat. Soc. B 57. Holds for independent or positively dependent tests.
    """
    from scipy.stats import false_discovery_control

    return np.asarray(false_discovery_control(p)) if len(p) else np.empty(0)


def _studentised(residuals: Float[np.ndarray, " prompt *rest"], spread: np.ndarray) -> Interval:
    """Between which values the studentised mean, (mean - truth) / (s / sqrt(n)), is in 95 of 100 samples."""
    n = len(residuals)
    t = t_quantile(n - 1)
    bend = np.asarray(SKEW * _skewness(residuals, spread) / (3 * math.sqrt(n)))
    return np.asarray(np.minimum(-t, _unbent(-t, bend))), np.asarray(np.maximum(t, _unbent(t, bend)))


def _skewness(residuals: Float[np.ndarray, " prompt *rest"], spread: np.ndarray) -> np.ndarray:
    """Third moment in units of the spread, n / ((n - 1) (n - 2)) sum (x / s)^3; 0 where it cannot be known."""
    n = len(residuals)
    if n < 3:
        return np.zeros_like(spread)
    return np.asarray(n / ((n - 1) * (n - 2)) * ((residuals / np.where(spread > 0, spread, 1.0)) ** 3).sum(axis=0))


def _unbent(t: float, bend: np.ndarray) -> np.ndarray:
    """The T for which T + a T^2 + a^2 T^3 / 3 + a / 2 = t, where ((1 + a T)^3 - 1) / (3 a) is its first three terms."""
    some = np.abs(bend) > 1e-9
    a = np.where(some, bend, 1.0)
    return np.where(some, (np.cbrt(1 + 3 * a * (t - a / 2)) - 1) / a, t)


def ratio_interval(
    numerator: Float[np.ndarray, " prompt"], denominator: Float[np.ndarray, " prompt"]
) -> tuple[float, tuple[float, float] | None]:
    """Ratio of two means over the same prompts, and its 95% interval (Fieller).

    a, b per prompt, A, B their means, R = A / B; the interval holds every r at which a - r b may have the mean zero:

        least <= (A - r B) / se(a - r b) <= most        the values that `mean_intervals` allows, -+t or further

    Where a = R b at every prompt, the interval is R alone, however much b scatters. It is not symmetric about R.

    Returns:
        R, and its interval; None for one prompt, or where B is not significantly different from zero at 5%: the
        interval would have no ends.

    Raises:
        NonFiniteError: a value is NaN or infinite, or the denominators' mean is zero.

    Reference:
        Fieller 1954, J. R. Stat. Soc. B 16: exact for jointly normal pairs, with -+t alone.
    """
    n = len(numerator)
    assert n == len(denominator) > 0, "a ratio needs the same prompts twice, and at least one"
    if not (np.isfinite(numerator).all() and np.isfinite(denominator).all()) or denominator.mean() == 0:
        raise NonFiniteError("a ratio of means needs finite numbers and a denominator other than zero.")
    ratio = float(numerator.mean() / denominator.mean())
    if n == 1:
        return ratio, None
    rest = numerator - ratio * denominator
    ends = [_ratio_end(rest, denominator, side) for side in (-1, 1)]
    low, high = (None if end is None else ratio + end for end in ends)
    return ratio, None if low is None or high is None else (low, high)


def _ratio_end(
    rest: Float[np.ndarray, " prompt"], denominator: Float[np.ndarray, " prompt"], side: Literal[-1, 1]
) -> float | None:
    """How far below or above R the interval ends; None where it has no end there.

    With u = r - R and e = a - R b, of mean zero, Student's end is a root of a quadratic in u,

        (u B)^2 = t^2 (s_ee - 2 u s_eb + u^2 s_bb) / n

    and the skewness of e - u b can only move it outwards: there it is looked for, on a grid that is narrowed.
    """
    (s_ee, s_eb), (_, s_bb) = np.cov(rest, denominator) * (t_quantile(len(rest) - 1) ** 2 / len(rest))
    square = float(denominator.mean()) ** 2 - s_bb
    if square <= 0:
        return None
    middle = -s_eb / square
    least = middle + side * math.sqrt(max(0.0, middle**2 + s_ee / square))
    if least == 0:
        return 0.0
    tried = least * np.geomspace(1, FURTHEST, GRID)
    for _ in range(3):
        _, ends = mean_intervals(rest[:, None] - tried * denominator[:, None])
        assert ends is not None, "one prompt has no ends to look for"
        without = np.flatnonzero((ends[0] > 0) | (ends[1] < 0))
        if not len(without):
            return None
        first = max(1, int(without[0]))
        tried = np.linspace(tried[first - 1], tried[first], GRID)
    return float(tried[-1])
