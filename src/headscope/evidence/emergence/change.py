"""The phase change: at which step of training a score rises, over how many steps, and how well both are known.

A curve of scores y at steps x is fitted by one rise between two levels,

    y(x) = low + (high - low) / (1 + exp(-(u(x) - u(step)) / scale))         u(x) = x, or log x

by least squares, whichever of the two scales of training leaves less. `step` is where half of the rise is done, `width`
the steps from a tenth of it to nine tenths. For a pair (step, scale) the best levels follow in closed form, so RSS is
known on a grid of pairs, which is then narrowed around its minimum: there is no start value and no local minimum.

The 95% intervals are profile likelihood's. They hold each step, and each width, for which

    RSS <= RSS_min * (1 + t^2 / (n - 4)) + n * 0.001^2            t = t(0.975, n - 4), n checkpoints

with all else at its best, the scale of training included. Where the rise falls between two checkpoints every step
between them fits alike; the interval then is that gap, and the width's begins at 0.

That is the scatter of checkpoints about the curve. The scores' own intervals, over prompts, come on top: every
checkpoint reads the same prompts, so other prompts would move neighbouring scores together. So the rise is fitted to
the lower ends of all scores and to the upper ends too, and the intervals reported enclose those of the three fits.
Coverage is measured in tests/tracking/test_change.py.

Scatter may be larger inside the rise than on its levels. The checkpoints inside, where between 2% and 98% of the rise
is done, say how large: their variance is modelled as that of the levels plus c 4 p (1 - p), p the share done, and c is
what makes the residuals inside as large as expected of them, M = 1 - J J+ being what the fit leaves of each scatter:

    E[sum over i inside of r_i^2] = sum over i inside, and j, of M_ij^2 (levels + c 4 p_j (1 - p_j))

Where c > 0 the intervals reported also enclose the usual ones of least squares under that variance (sandwich), with t
of the degrees of freedom that such a sum of squares has (Satterthwaite's; a dozen checkpoints inside count as some
seven). The step's does not reach past the checkpoints next to those; where fewer than three are inside, it is all
between.

A curve may rise twice: where it has three levels, each 0.2 above the one before, both halves have a rise of their own
by all that is asked of one, and two rises leave so much less than one that the F test gives p < 0.0001. That is strict
because three checkpoints of a wide rise can be on one level by chance. Both are named; `found` is the larger.

"No phase change" is a result and has its reason: see `phase_change`.

Cost: some 10^5 logistic curves of n points for each of the three fits, some tens of milliseconds.

It misleads in three ways. Intervals are about this one run and its checkpoints: another seed rises at another step, by
far more than the interval. Two rises that overlap are described by one that spans both. And scatter of
neighbouring checkpoints is taken for independent; where a curve rises smoothly but not as a logistic does, the interval
is about the fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from headscope.errors import ArgumentError
from headscope.records.common import Estimate
from headscope.stats import t_quantile

LEAST_CHECKPOINTS = 6
"""Four numbers are fitted, and the scatter about them has to be judged."""
LEAST_RISE = 0.2
"""Of a score in [0, 1]: a smaller rise is no phase change."""
LEAST_SHARE = 0.8
"""Of the curve's variance that one rise must explain."""
TWO_RISES_P = 1e-4
"""Of the F test by which two rises are named where one could do."""
MOST_OUTSIDE = 0.25
"""Of the fitted rise, before the first checkpoint or after the last."""
STEPS, SCALES, ROUNDS = 65, 41, 3
"""Grid of steps and scales, and how often it is narrowed."""
FINEST = 1000
"""The smallest scale tried, as a part of the narrowest gap: a jump."""
ROUNDING = 1e-3
"""Scores are not taken to be known better than this: each adds its square to the limit on RSS."""
TENTHS = 2 * math.log(9)
"""Scales from a tenth of the rise to nine tenths."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChange:
    """One rise from one level to another."""

    step: Estimate
    """Where half of the rise is done."""
    width: Estimate
    """Steps from a tenth of the rise to nine tenths."""
    low: float
    """Level before."""
    high: float
    """Level after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Whether a curve has a phase change."""

    found: PhaseChange | None
    """It; None where there is none."""
    reason: str
    """What the curve does, in one sentence."""


Numbers = Sequence[int | float] | np.ndarray


def phase_change(steps: Numbers, scores: Numbers, ci95: Sequence[tuple[float, float]] | None = None) -> Change:
    """Find the one rise of a curve, or the larger of two.

    There is none where

    - fewer than 6 checkpoints are given;
    - no score is 0.2 above the lowest before it;
    - the first score is above the middle of the whole range: the rise was before the first checkpoint;
    - one rise explains less than 0.8 of the curve's variance: it falls again, or wanders;
    - a single checkpoint is before the rise, or after it, which may be a spike;
    - more than a quarter of the fitted rise, or an end of the step's interval, is outside of the steps seen.

    Args:
        steps: Of the checkpoints, ascending, from 0 up.
        scores: One for each, in [0, 1].
        ci95: Each score's own interval over prompts; widens those of step and width.

    Raises:
        ArgumentError: steps that do not ascend, a different number of scores, or numbers that are not finite.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    ends = np.asarray([] if ci95 is None else ci95, dtype=np.float64)
    if x.ndim != 1 or not len(x) == len(y) == (len(x) if ci95 is None else len(ends)) or not _finite(x, y, ends):
        raise ArgumentError(
            f"{x.size} steps and {y.size} scores do not make a curve; give one finite score for each step."
        )
    if len(x) and (x[0] < 0 or (np.diff(x) <= 0).any()):
        raise ArgumentError("the steps do not ascend from 0 up; sort the checkpoints by their step, each once.")
    if (why := _no_rise(x, y)) is not None:
        return Change(found=None, reason=why)
    fit = _fit(x, y)
    if (two := _two_rises(x, y, fit)) is not None:
        rises = [_change(x[part], y[part], ends[part], half) for part, half in two]
        says = " and again ".join(
            f"from {one.low:.2f} to {one.high:.2f} about step {one.step.mean:.0f}" for one in rises
        )
        return Change(found=max(rises, key=lambda one: one.high - one.low), reason=f"it rises twice: {says}")
    if (why := _no_fit(x, y, fit)) is not None:
        return Change(found=None, reason=why)
    return Change(found=_change(x, y, ends, fit), reason=f"it rises from {fit.low:.2f} to {fit.high:.2f} and stays")


def _change(
    x: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"], ends: np.ndarray, fit: _Fit
) -> PhaseChange:
    fits = [fit, *(_fit(x, end) for end in ends.T)]
    scattered = _uneven(x, y, fit)
    return PhaseChange(
        step=Estimate(mean=fit.step, ci95=_hull([*(one.step_ci95 for one in fits), scattered[0]])),
        width=Estimate(mean=fit.width, ci95=_hull([*(one.width_ci95 for one in fits), scattered[1]])),
        low=fit.low,
        high=fit.high,
    )


def _uneven(
    x: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"], fit: _Fit
) -> tuple[_Range, _Range]:
    """Intervals of step and width where the variance is another inside the rise than on the levels."""
    alone = (fit.step, fit.step), (fit.width, fit.width)
    u, middle, p = fit.scaled(x), fit.middle, fit.done(x)
    rest, bell = y - fit.low - (fit.high - fit.low) * p, 4 * p * (1 - p)
    inside = np.abs(p - 0.5) < 0.48
    n_inside = int(inside.sum())
    if not n_inside:
        return alone
    places = np.flatnonzero(inside)
    first, last = float(x[max(0, places[0] - 1)]), float(x[min(len(x) - 1, places[-1] + 1)])
    if n_inside < 3:  # how much they scatter cannot be known
        return (first, last), (0.0, max(fit.width, last - first))
    # With respect to the middle, the logarithm of the scale, and the two levels.
    slope = (fit.high - fit.low) * bell / 4
    away = np.where(slope > 0, ((u - middle) / fit.scale).clip(-500, 500), 0.0)
    jacobian = np.stack([-slope / fit.scale, -slope * away, 1 - p, p], axis=1)
    solve = np.linalg.pinv(jacobian)
    left = np.eye(len(x)) - jacobian @ solve  # what the fit leaves of each checkpoint's scatter
    levels = float((rest[~inside] ** 2).sum()) / max(1.0, float((left[~inside] ** 2).sum()))
    of_bell = left[inside] * np.sqrt(bell)
    expected = float((of_bell**2).sum())
    more = (float((rest[inside] ** 2).sum()) - levels * float((left[inside] ** 2).sum())) / max(expected, 1e-12)
    if more <= 0:
        return alone
    spread = np.sqrt((solve**2 * (levels + more * bell)).sum(1))
    degrees = expected**2 / float(((of_bell @ of_bell.T) ** 2).sum())
    reach = t_quantile(max(1.0, degrees)) * spread
    near, far = middle - reach[0], middle + reach[0]
    if fit.log:
        near, far = math.exp(near), math.exp(min(far, math.log(x[-1])))
    times = math.exp(min(float(reach[1]), 50.0))
    width = fit.width / times, min(fit.width * times, float(x[-1] - x[0]))
    return (max(float(near), first), min(float(far), last)), width


def _two_rises(
    x: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"], one: _Fit
) -> tuple[tuple[slice, _Fit], tuple[slice, _Fit]] | None:
    """The parts of a curve that each have a rise of their own, and those; None where there are not two."""
    between = _middle_level(y)
    if between is None:
        return None
    start, end = between
    parts = slice(0, end), slice(start, len(x))
    if any(_no_rise(x[part], y[part]) is not None for part in parts):
        return None
    fits = [_fit(x[part], y[part]) for part in parts]
    if any(_no_fit(x[part], y[part], fit) is not None for part, fit in zip(parts, fits, strict=True)):
        return None
    if fits[0].step + fits[0].width / 2 >= fits[1].step - fits[1].width / 2:
        return None
    if _two_p(x, y, one, fits) >= TWO_RISES_P:
        return None
    return (parts[0], fits[0]), (parts[1], fits[1])


def _two_p(
    x: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"], one: _Fit, two: Sequence[_Fit]
) -> float:
    """P of the F test that two rises leave no less than one: seven numbers are fitted in place of four."""
    from scipy.special import fdtrc

    levels = np.stack([np.ones_like(x), *(fit.done(x) for fit in two)], axis=1)
    rounding, degrees = len(x) * ROUNDING**2, len(x) - 7
    rest = rounding + float(((y - levels @ np.linalg.lstsq(levels, y)[0]) ** 2).sum())
    return float(fdtrc(3, degrees, max(0.0, rounding + one.rss - rest) / 3 / (rest / degrees)))


def _middle_level(y: Float[np.ndarray, " checkpoint"]) -> tuple[int, int] | None:
    """First and one past the last checkpoint of the second of three levels, by least squares.

    None where a level does not lie 0.2 above the one before or has fewer than three checkpoints.
    """
    sums, squares = np.r_[0.0, np.cumsum(y)], np.r_[0.0, np.cumsum(y**2)]

    def rss(start: int, end: int) -> float:
        return float(squares[end] - squares[start] - (sums[end] - sums[start]) ** 2 / (end - start))

    n = len(y)
    cuts = ((a, b) for a in range(3, n - 5) for b in range(a + 3, n - 2))
    best = min(cuts, key=lambda cut: rss(0, cut[0]) + rss(*cut) + rss(cut[1], n), default=None)
    if best is None:
        return None
    low, middle, high = y[: best[0]].mean(), y[best[0] : best[1]].mean(), y[best[1] :].mean()
    return best if middle - low >= LEAST_RISE and high - middle >= LEAST_RISE else None


def _finite(*numbers: np.ndarray) -> bool:
    return all(bool(np.isfinite(one).all()) for one in numbers)


def _hull(ranges: Sequence[_Range]) -> _Range:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


_Range = tuple[float, float]
_Box = tuple[_Range, _Range]
"""Of middles, and of logarithms of scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """The rise that fits best on one scale of training, in steps."""

    rss: float
    log: bool
    """Whether in the logarithm of steps."""
    scale: float
    """On that scale of training."""
    step: float
    step_ci95: tuple[float, float]
    width: float
    width_ci95: tuple[float, float]
    outside: tuple[float, float]
    """Share of the rise before the first checkpoint, and after the last."""
    low: float
    high: float

    @property
    def middle(self) -> float:
        """The step on the fit's scale of training."""
        return math.log(self.step) if self.log else self.step

    def scaled(self, x: Float[np.ndarray, " checkpoint"]) -> Float[np.ndarray, " checkpoint"]:
        """Steps on the fit's scale of training; step 0 of the logarithmic one is before any rise."""
        with np.errstate(divide="ignore"):
            return (np.log(x) if self.log else x).clip(-1e300)

    def done(self, x: Float[np.ndarray, " checkpoint"]) -> Float[np.ndarray, " checkpoint"]:
        """Share of the rise that is done at each step."""
        return _logistic(self.scaled(x), np.asarray(self.middle), np.asarray(self.scale))


def _fit(x: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"]) -> _Fit:
    both = [_tried(x, y, log=log) for log in (False, True)]
    best = min(both, key=lambda tried: tried.least)
    at = best.within(best.least * (1 + 1e-9) + 1e-12)  # one pair, or all between two checkpoints where any would do
    limit = best.limit
    regions = [(tried, inside) for tried in both if (inside := tried.within(limit)).any()]
    middle, scale = float(best.middles[at].mean()), float(np.exp(np.log(best.scales[at]).mean()))
    rise = _logistic(best.u, np.asarray(middle), np.asarray(scale))
    slope = float(np.cov(rise, y, bias=True)[0, 1] / rise.var()) if rise.var() > 0 else 0.0
    low = float(y.mean() - slope * rise.mean())
    widths = [_range(tried.widths[inside]) for tried, inside in regions]
    if any(tried.scales[inside].min() <= 1.01 * tried.finest for tried, inside in regions):
        widths.append((0.0, 0.0))
    return _Fit(
        rss=best.least,
        log=best.log,
        scale=scale,
        step=math.exp(middle) if best.log else middle,
        step_ci95=_hull([_range(tried.steps[inside]) for tried, inside in regions]),
        width=float(best.widths[at].mean()),
        width_ci95=_hull(widths),
        outside=(float(rise[0]), float(1 - rise[-1])),
        low=low,
        high=low + slope,
    )


def _range(numbers: Float[np.ndarray, " place"]) -> _Range:
    return float(numbers.min()), float(numbers.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tried:
    """Middles and scales within a box, and what each pair leaves over, on one scale of training."""

    u: Float[np.ndarray, " checkpoint"]
    log: bool
    finest: float
    """The smallest scale tried."""
    box: _Box
    middles: Float[np.ndarray, "scale place"]
    scales: Float[np.ndarray, "scale place"]
    rss: Float[np.ndarray, "scale place"]

    @property
    def least(self) -> float:
        """RSS of the best pair."""
        return float(self.rss.min())

    @property
    def limit(self) -> float:
        """Largest residual sum of squares inside the 95% region."""
        degrees = len(self.u) - 4
        return self.least * (1 + t_quantile(degrees) ** 2 / degrees) + len(self.u) * ROUNDING**2

    def within(self, limit: float) -> Bool[np.ndarray, "scale place"]:
        """Pairs whose residual sum of squares is at most `limit`."""
        return self.rss <= limit

    @property
    def steps(self) -> Float[np.ndarray, "scale place"]:
        """Where half of each pair's rise is done."""
        return np.exp(self.middles) if self.log else self.middles

    @property
    def widths(self) -> Float[np.ndarray, "scale place"]:
        """Steps from a tenth of each pair's rise to nine tenths."""
        edge = math.log(9) * self.scales
        return self.steps * (np.exp(edge) - np.exp(-edge)) if self.log else 2 * edge

    def narrowed(self, ends: _Box) -> _Box:
        """A box around the region, a cell of the grid wider on each side."""
        inside = self.within(self.limit)
        return (
            _around(self.middles[inside], self.box[0], STEPS, ends[0]),
            _around(np.log(self.scales[inside]), self.box[1], SCALES, ends[1]),
        )


def _around(found: Float[np.ndarray, " place"], box: _Range, n: int, ends: _Range) -> _Range:
    cell = (box[1] - box[0]) / (n - 1)
    return max(float(found.min()) - cell, ends[0]), min(float(found.max()) + cell, ends[1])


def _tried(x: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"], *, log: bool) -> _Tried:
    """Try the whole run, then ever narrower boxes around what fits."""
    with np.errstate(divide="ignore"):
        u = np.log(x) if log else x  # step 0 is -inf on the log scale: fully before any rise
    seen = u[np.isfinite(u)]
    finest = float(np.diff(seen).min()) / FINEST
    ends = (float(seen[0]), float(seen[-1])), (math.log(finest), math.log(seen[-1] - seen[0]))
    box = ends
    for _ in range(ROUNDS - 1):
        box = _grid(u, y, box, log=log, finest=finest).narrowed(ends)
    return _grid(u, y, box, log=log, finest=finest)


def _grid(
    u: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"], box: _Box, *, log: bool, finest: float
) -> _Tried:
    """Try the middles and scales of a box.

    With each scale an even grid of middles, places within a few scales of each checkpoint, and a search about the best
    of them: for a scale far below the gaps the fit depends on where exactly the middle is between two checkpoints.
    """
    scales = np.exp(np.linspace(*box[1], SCALES))[:, None]
    even = np.broadcast_to(np.linspace(*box[0], STEPS), (SCALES, STEPS))
    near = u[(u >= box[0][0]) & (u <= box[0][1])]
    close = (near[:, None] + scales[..., None] * np.arange(-4, 5)).reshape(SCALES, -1)
    middles = np.concatenate([even, close.clip(*box[0])], axis=1)
    rss = _left_over(u, y, middles, scales)
    for reach in 0.5 ** np.arange(8):
        best = np.take_along_axis(middles, rss.argmin(1)[:, None], axis=1)
        more = (best + reach * scales * np.linspace(-1, 1, 5)).clip(*box[0])
        middles = np.concatenate([middles, more], axis=1)
        rss = np.concatenate([rss, _left_over(u, y, more, scales)], axis=1)
    scales = np.broadcast_to(scales, middles.shape)
    return _Tried(u=u, log=log, finest=finest, box=box, middles=middles, scales=scales, rss=rss)


def _left_over(
    u: Float[np.ndarray, " checkpoint"],
    y: Float[np.ndarray, " checkpoint"],
    middles: Float[np.ndarray, "scale place"],
    scales: Float[np.ndarray, "scale 1"],
) -> Float[np.ndarray, "scale place"]:
    """RSS of each pair, with the levels that fit it best; a pair that could only fall explains nothing."""
    rise = _logistic(u, middles[..., None], scales[..., None])
    rise -= rise.mean(-1, keepdims=True)
    about = y - y.mean()
    along, size = rise @ about, (rise**2).sum(-1)
    explained = np.where(along > 0, along, 0.0) ** 2 / np.where(size > 0, size, 1.0)
    return np.maximum((about**2).sum() - explained, 0.0)


def _logistic(u: np.ndarray, middle: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-((u - middle) / scale).clip(-500, 500)))


def _no_rise(x: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"]) -> str | None:
    """Why the curve needs no fit."""
    if len(x) < LEAST_CHECKPOINTS:
        return f"{len(x)} of the {LEAST_CHECKPOINTS} checkpoints or more that it takes to tell a rise from scatter"
    low, high = float(y.min()), float(y.max())
    rise = float((y - np.minimum.accumulate(y)).max())
    if rise < LEAST_RISE:
        what = f"it stays between {low:.2f} and {high:.2f}"
        if high - low >= LEAST_RISE:
            what = f"it falls from {high:.2f} to {low:.2f}"
        return f"{what}, and no score is {LEAST_RISE} above an earlier one"
    if y[0] > (low + high) / 2:
        return f"it is {y[0]:.2f} at the first checkpoint already; what rise there was came before step {x[0]:g}"
    return None


def _no_fit(x: Float[np.ndarray, " checkpoint"], y: Float[np.ndarray, " checkpoint"], fit: _Fit) -> str | None:
    """Why the best fit is no phase change."""
    share = 1 - fit.rss / float(((y - y.mean()) ** 2).sum())
    if share < LEAST_SHARE:
        return f"one rise explains {share:.0%} of the curve, which falls again or wanders"
    if (x < fit.step).sum() < 2:
        return "only one checkpoint is before the rise; measure earlier ones too"
    if (x > fit.step).sum() < 2:
        return "only one checkpoint is after the rise, which may be a spike; train on"
    if fit.outside[1] > MOST_OUTSIDE or fit.step_ci95[1] >= x[-1]:
        return f"the rise that fits best is not over at the last checkpoint, step {x[-1]:g}; train on"
    if fit.outside[0] > MOST_OUTSIDE or fit.step_ci95[0] <= x[0]:
        return f"the rise that fits best began before the first checkpoint, step {x[0]:g}; measure earlier ones too"
    return None
