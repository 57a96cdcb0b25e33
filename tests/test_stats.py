"""Intervals and tests against published tables and against arithmetic done by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from pytest import approx

from headscope.errors import NonFiniteError
from headscope.stats import benjamini_hochberg, mean_intervals, p_values, share_interval, t_quantile, two_sided_p

# Two-sided 95% points of Student's t, as every statistics textbook prints them.
PUBLISHED = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
    11: 2.201, 12: 2.179, 13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093, 20: 2.086,
    25: 2.060, 29: 2.045, 30: 2.042, 40: 2.021, 50: 2.009, 60: 2.000, 100: 1.984, 120: 1.980,
}  # fmt: skip


@pytest.mark.parametrize("degrees", list(PUBLISHED))
def test_t_quantiles_are_the_published_ones(degrees):
    assert t_quantile(degrees) == approx(PUBLISHED[degrees], abs=0.0005)


def test_t_quantiles_have_their_closed_forms():
    # One degree is Cauchy's: tan(0.475 pi). Two degrees: p sqrt(2 / (1 - p^2)) with p = 0.95.
    assert t_quantile(1) == approx(math.tan(0.475 * math.pi), abs=1e-9)
    assert t_quantile(2) == approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), abs=1e-9)
    # Four degrees: 2 sqrt(c - 1), c = cos(acos(sqrt a) / 3) / sqrt a, a = 4 * 0.975 * 0.025.
    a = 4 * 0.975 * 0.025
    c = math.cos(math.acos(math.sqrt(a)) / 3) / math.sqrt(a)
    assert t_quantile(4) == approx(2 * math.sqrt(c - 1), abs=1e-9)


def test_t_quantiles_fall_to_the_normal_one():
    quantiles = [t_quantile(degrees) for degrees in [*range(1, 40), 200, 1000, 4095]]
    assert all(later < earlier for earlier, later in pairwise(quantiles))
    # 1.959964 + (z^3 + z) / (4 n), the first term of its expansion: 1.959964 + 9.489 / 16380 = 1.960543.
    assert quantiles[-1] == approx(1.960543, abs=1e-6)


def test_an_interval_by_hand():
    # 1, 2, 3, 4 have no skewness, so this is Student's: mean 2.5; s^2 = (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5/3;
    # t(3) = 3.182446; 3.182446 * sqrt(5/3) / sqrt(4) = 2.054260.
    mean, (low, high) = mean_intervals(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == approx(2.5)
    assert (low, high) == (approx(2.5 - 2.054260, abs=1e-6), approx(2.5 + 2.054260, abs=1e-6))


def test_a_skewed_interval_by_hand():
    # 0, 0, 0, 4: mean 1, s = 2, error 1. Third moment: (3 * (-1/2)^3 + (3/2)^3) * 4 / (3 * 2) = 3 * 2/3 = 2.
    # a = 1.25 * 2 / (3 * 2) = 5/12. Student's ends are 1 -+ 3.182446. Hall's upper one is 1 - T with
    # T + a T^2 + a^2 T^3 / 3 + a / 2 = -3.182446: T = (cbrt(1 + 3 a (-3.182446 - a / 2)) - 1) / a
    # = (cbrt(-3.238474) - 1) * 12/5 = -2.479495 * 12/5 = -5.950788.
    mean, (low, high) = mean_intervals(np.array([0.0, 0.0, 0.0, 4.0]))
    a, T = 5 / 12, mean - high
    assert T + a * T**2 + a**2 * T**3 / 3 + a / 2 == approx(-3.182446, abs=1e-6)
    assert approx(-5.950788, abs=1e-4) == T
    # Below, Hall's end lies nearer than Student's, which counts.
    assert low == approx(1 - 3.182446, abs=1e-6)


def test_an_interval_moves_with_its_data(rng):
    samples = rng.gamma(0.5, size=(20, 7))
    mean, (low, high) = mean_intervals(samples)
    for scale, shift in ((3.0, -5.0), (-0.1, 2.0)):
        moved, ends = mean_intervals(scale * samples + shift)
        assert moved == approx(scale * mean + shift)
        assert np.sort(ends, axis=0) == approx(np.sort([scale * low + shift, scale * high + shift], axis=0))
    # Prompts in another order, heads in another order, a head alone: the same interval.
    order, heads = rng.permutation(20), rng.permutation(7)
    _, ends = mean_intervals(samples[order][:, heads])
    assert np.stack(ends) == approx(np.stack([low, high])[:, heads], rel=1e-12)
    assert np.stack(mean_intervals(samples[:, 3])[1]) == approx(np.stack([low, high])[:, 3], rel=1e-12)


def test_two_prompts_are_the_fewest_for_an_interval():
    # 0 and 1: s = 1/sqrt(2), half = 12.706205 / sqrt(2) / sqrt(2) = 6.353102. Wide, but honest.
    mean, (low, high) = mean_intervals(np.array([0.0, 1.0]))
    assert (mean, high - low) == (approx(0.5), approx(2 * 6.353102, abs=1e-6))
    mean, ends = mean_intervals(np.array([0.3]))
    assert mean == approx(0.3)
    assert ends is None, "one prompt has no interval: neither zero nor NaN"


def test_prompts_are_the_first_axis_and_all_others_are_kept():
    samples = np.arange(24.0).reshape(4, 3, 2)
    mean, (low, high) = mean_intervals(samples)
    assert mean.tolist() == [[9.0, 10.0], [11.0, 12.0], [13.0, 14.0]]
    # In each column four values 6 apart: s = 6 sqrt(5/3), so six times the interval of 1, 2, 3, 4.
    assert (high - low) / 2 == approx(np.full((3, 2), 6 * 2.054260), abs=1e-5)


def test_paired_differences_are_narrower_than_what_they_are_made_of():
    # Scores 0.1, 0.5, 0.9 and controls 0.0, 0.5, 0.7: differences 0.1, 0.0, 0.2, mean 0.1, s = 0.1.
    score, control = np.array([0.1, 0.5, 0.9]), np.array([0.0, 0.5, 0.7])
    mean, (low, high) = mean_intervals(score - control)
    assert mean == approx(0.1)
    assert (high - low) / 2 == approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    wide = mean_intervals(score)[1]
    assert high - low < wide[1] - wide[0]


def test_equal_values_have_an_interval_of_no_width_and_are_left_unchanged():
    samples = np.full((5, 2), 0.25)
    mean, (low, high) = mean_intervals(samples)
    assert mean.tolist() == low.tolist() == high.tolist() == [0.25, 0.25]
    assert (samples == 0.25).all()


@pytest.mark.parametrize(("n", "tolerance"), [(2, 0.006), (3, 0.02), (8, 0.02), (16, 0.015), (64, 0.01)])
def test_intervals_of_normal_draws_cover_19_times_in_20(rng, n, tolerance):
    # 20,000 intervals: the sampling error is sqrt(0.95 * 0.05 / 20,000) = 0.0015. With 1.96 for t they cover
    # 0.700, 0.811, 0.909 and 0.931. Where there is no skewness, its estimate widens them: by 2% at 64, 7% at 16.
    _, (low, high) = mean_intervals(rng.normal(0.3, 0.1, size=(n, 20_000)))
    covered = ((low <= 0.3) & (high >= 0.3)).mean()
    assert 0.944 <= covered <= 0.95 + tolerance


@pytest.mark.parametrize(
    ("draw", "true", "least"),
    [
        # Covered, and by Student's t alone: 0.966 and 0.926; 0.977 and 0.876; 0.973 and 0.919.
        (lambda rng, size: rng.exponential(size=size), 1.0, 0.95),
        (lambda rng, size: rng.gamma(0.25, size=size), 0.25, 0.95),
        (lambda rng, size: -rng.beta(0.5, 8.0, size=size), -0.5 / 8.5, 0.95),
    ],
    ids=["exponential", "gamma", "share near a bound"],
)
def test_intervals_of_skewed_draws_cover_them_too(rng, draw, true, least):
    samples = draw(rng, (32, 20_000))
    mean, (low, high) = mean_intervals(samples)
    covered = ((low <= true) & (true <= high)).mean()
    assert least <= covered <= 0.985
    half = 2.0395 * samples.std(axis=0, ddof=1) / 32**0.5
    assert (np.abs(mean - true) <= half).mean() < 0.935, "Student's alone"


def test_wilsons_interval_by_hand():
    # 4 of 5: z^2 = 3.841459. (0.8 + 0.384146 -+ 1.959964 sqrt((0.16 + 0.192073) / 5)) / 1.768292
    # = (1.184146 -+ 0.520099) / 1.768292 = 0.375530, 0.963776.
    assert share_interval(np.array([1.0, 1, 1, 1, 0])) == (approx(0.375530, abs=1e-5), approx(0.963776, abs=1e-5))
    # All of five: from 5 / (5 + 3.841459) to 1, and not of no width.
    assert share_interval(np.ones(5)) == (approx(5 / 8.841459, abs=1e-6), 1.0)
    assert share_interval(np.zeros(5)) == (0.0, approx(1 - 5 / 8.841459, abs=1e-6))


@pytest.mark.parametrize("share", [0.1, 0.35, 0.5, 0.9])
def test_wilsons_interval_covers_19_times_in_20(rng, share):
    answers = (rng.random((3000, 48)) < share).astype(float)
    covered = [low <= share <= high for low, high in map(share_interval, answers)]
    assert 0.93 <= np.mean(covered) <= 0.975


def test_no_prompt_has_no_mean():
    with pytest.raises(AssertionError, match="a mean needs at least one prompt"):
        mean_intervals(np.zeros((0, 3)))


# ---- other errors than 5%

# Two-sided 10%, 1% and 0.1% points, from the same tables.
PUBLISHED_ERRORS = {
    1: (6.314, 63.657, 636.619), 2: (2.920, 9.925, 31.599), 5: (2.015, 4.032, 6.869), 10: (1.812, 3.169, 4.587),
    20: (1.725, 2.845, 3.850), 30: (1.697, 2.750, 3.646), 60: (1.671, 2.660, 3.460), 120: (1.658, 2.617, 3.373),
}  # fmt: skip


@pytest.mark.parametrize("degrees", list(PUBLISHED_ERRORS))
def test_t_quantiles_at_other_errors_are_the_published_ones(degrees):
    for error, published in zip((0.1, 0.01, 0.001), PUBLISHED_ERRORS[degrees], strict=True):
        assert t_quantile(degrees, error=error) == approx(published, abs=0.0006)


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 31])
@pytest.mark.parametrize("error", [0.5, 0.05, 1e-3, 1e-6, 1e-9])
def test_the_quantile_and_the_probability_undo_each_other(degrees, error):
    assert two_sided_p(t_quantile(degrees, error=error), degrees) == approx(error, rel=1e-6)


def test_small_errors_have_their_closed_forms():
    # Cauchy's at error e: tan((1 - e) pi / 2) = 1 / tan(e pi / 2); at 1e-9 that is 6.4e8, found to a few digits since
    # the probability of its middle, 1 - 1e-9, is held to 1e-16.
    assert t_quantile(1, error=1e-9) == approx(1 / math.tan(1e-9 * math.pi / 2), rel=1e-6)
    # Two degrees: t = p sqrt(2 / (1 - p^2)) with p = 1 - e.
    assert t_quantile(2, error=1e-6) == approx((1 - 1e-6) * math.sqrt(2 / (1 - (1 - 1e-6) ** 2)), rel=1e-9)
    assert t_quantile(3, error=0.05) == t_quantile(3)


# ---- p


def test_p_of_the_published_points_is_their_error():
    # 2.228 is the 5% point of 10 degrees, rounded; so is each of the table's others.
    assert two_sided_p(2.228, 10) == approx(0.05, abs=2e-5)
    for degrees, published in PUBLISHED.items():
        assert two_sided_p(published, degrees) == approx(0.05, rel=2e-3), degrees


def test_p_has_its_closed_forms():
    # Cauchy's middle half lies within -1 .. 1. Two degrees: 1 - t / sqrt(2 + t^2), at t = 2: 1 - 2 / sqrt 6 = 0.183503.
    assert two_sided_p(1.0, 1) == approx(0.5)
    assert two_sided_p(2.0, 2) == approx(0.183503, abs=1e-6)
    # No distance at all has probability 1; the sign does not matter; what is past rounding is 0 and never below.
    for degrees in (1, 2, 7, 30):
        assert two_sided_p(0.0, degrees) == 1.0
        assert two_sided_p(-1.3, degrees) == two_sided_p(1.3, degrees)
        assert 0 <= two_sided_p(1e30, degrees) < 1e-15


def test_p_falls_with_the_distance_and_with_the_degrees():
    by_distance = [two_sided_p(t, 9) for t in np.linspace(0, 20, 200)]
    assert all(later < earlier for earlier, later in pairwise(by_distance))
    by_degrees = [two_sided_p(2.0, degrees) for degrees in range(1, 60)]
    assert all(later < earlier for earlier, later in pairwise(by_degrees))


def test_p_of_samples_by_hand():
    # 1, 2, 3, 4: mean 2.5, error sqrt(5/3) / 2 = 0.645497, t = 3.872983. Three degrees:
    # p = 1 - 2/pi (a + sin a cos a), a = atan(t / sqrt 3) = atan(sqrt 5) = 1.150262; sin a cos a = sqrt 5 / 6.
    a = math.atan(math.sqrt(5))
    wanted = 1 - 2 / math.pi * (a + math.sqrt(5) / 6)
    assert wanted == approx(0.030466, abs=1e-6)
    assert p_values(np.array([1.0, 2.0, 3.0, 4.0])) == approx(wanted, abs=1e-12)
    # Where there is no skewness an interval that ends at zero is what p = 0.05 means.
    _, (low, _) = mean_intervals(np.array([1.0, 2.0, 3.0, 4.0]))
    assert p_values(np.array([1.0, 2.0, 3.0, 4.0]) - low) == approx(0.05, abs=1e-9)


def test_p_keeps_the_shape_of_what_is_tested_and_leaves_it_unchanged(rng):
    samples = rng.normal(size=(6, 3, 2))
    before = samples.copy()
    found = p_values(samples)
    assert found.shape == (3, 2)
    for place in np.ndindex(3, 2):
        assert found[place] == p_values(samples[:, *place])
    assert (samples == before).all()


def test_without_spread_p_is_certain():
    # All prompts agree on 0: nothing speaks against zero. All agree on 0.25: zero is out of the question.
    assert p_values(np.array([[0.0, 0.25, -0.25]] * 5)).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_p_of_what_is_no_number_is_refused(bad):
    # Its spread would be NaN, which no comparison takes for large, and p 0: certain.
    with pytest.raises(NonFiniteError, match="holds NaN or infinity; load the model in a wider dtype"):
        p_values(np.array([[0.0, 1.0], [0.5, bad]]))


def test_one_prompt_says_nothing():
    assert p_values(np.array([[0.0, 3.0, -1e9]])).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_p_is_uniform_where_the_mean_is_zero(rng, n):
    # 20,000 tests: the sampling error at 0.05 is 0.0015, at 0.5 it is 0.0035.
    found = p_values(rng.normal(0.0, 0.1, size=(n, 20_000)))
    for error, tolerance in ((0.01, 0.003), (0.05, 0.006), (0.5, 0.014)):
        assert (found <= error).mean() == approx(error, abs=tolerance)


# ---- many tests at once


def test_benjamini_and_hochbergs_own_example():
    # Benjamini and Hochberg 1995, section 3.2: 15 comparisons; at 0.05 theirs rejects the first four, Bonferroni three.
    p = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528,
        0.7590, 1.0000,
    ]  # fmt: skip
    q = benjamini_hochberg(np.array(p))
    assert (q <= 0.05).tolist() == [True] * 4 + [False] * 11
    # 0.0095 * 15 / 4 = 0.035625; 0.0201 * 15 / 5 = 0.0603; the sixth, 0.0278 * 15 / 6 = 0.0695, gets the seventh's
    # 0.0298 * 15 / 7 = 0.063857, for a larger p must not have the smaller q.
    assert q[:7] == approx([0.0015, 0.003, 0.0095, 0.035625, 0.0603, 0.063857, 0.063857], abs=1e-6)
    assert q[-1] == 1.0


def test_q_values_by_hand_in_any_order():
    # 0.01, 0.02, 0.03, 0.04 of four: 0.04, 0.04, 0.04, 0.04. And 0.5, 0.01, 0.2: sorted 0.03, 0.3, 0.5.
    assert benjamini_hochberg(np.array([0.03, 0.01, 0.04, 0.02])) == approx([0.04] * 4)
    assert benjamini_hochberg(np.array([0.5, 0.01, 0.2])) == approx([0.5, 0.03, 0.3])
    assert benjamini_hochberg(np.array([0.2])).tolist() == [0.2]
    assert benjamini_hochberg(np.array([])).tolist() == []
    assert benjamini_hochberg(np.zeros(3)).tolist() == [0.0, 0.0, 0.0]


def test_q_values_are_never_below_p_never_above_one_and_keep_its_order(rng):
    for _ in range(50):
        p = rng.random(rng.integers(1, 30)) ** rng.integers(1, 5)
        before = p.copy()
        q = benjamini_hochberg(p)
        assert (q >= p - 1e-15).all()
        assert (q <= 1).all()
        assert (np.diff(q[np.argsort(p)]) >= 0).all()
        assert (p == before).all()
        # The same order in, the same order out.
        turn = rng.permutation(len(p))
        assert benjamini_hochberg(p[turn]) == approx(q[turn])


def test_a_smaller_p_never_gives_a_larger_q(rng):
    for _ in range(50):
        p = rng.random(12)
        less = p.copy()
        less[rng.integers(12)] *= rng.random()
        assert (benjamini_hochberg(less) <= benjamini_hochberg(p) + 1e-15).all()


def test_where_nothing_is_true_anything_is_called_in_one_set_of_20(rng):
    # 300 sets of 40 null means over 8 prompts. Expected 0.05, sampling error sqrt(0.05 * 0.95 / 300) = 0.0126.
    # Without the correction 1 - 0.95^40 = 87% of the sets would have a call.
    called = [(benjamini_hochberg(p_values(rng.normal(size=(8, 40)))) <= 0.05).any() for _ in range(300)]
    assert np.mean(called) <= 0.05 + 2 * 0.0126


def test_of_what_is_called_no_more_than_one_in_20_is_false(rng):
    # 30 null means and 10 of two standard deviations: the share of false calls is 0.05 * 30 / 40 = 0.0375 on average.
    shift = np.r_[np.zeros(30), np.full(10, 2.0)]
    shares, found = [], []
    for _ in range(300):
        called = benjamini_hochberg(p_values(shift + rng.normal(size=(8, 40)))) <= 0.05
        shares.append(called[:30].sum() / max(1, called.sum()))
        found.append(called[30:].mean())
    assert np.mean(shares) <= 0.05
    assert np.mean(shares) == approx(0.0375, abs=0.012)
    assert np.mean(found) > 0.8, "not by calling nothing"
