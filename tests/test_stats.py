"""Intervals against published tables and against arithmetic done by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from pytest import approx

from headscope.stats import mean_intervals, t_quantile

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
    # 1, 2, 3, 4: mean 2.5; s^2 = (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5/3; t(3) = 3.182446.
    # 3.182446 * sqrt(5/3) / sqrt(4) = 2.054260.
    mean, half = mean_intervals(np.array([1.0, 2.0, 3.0, 4.0]))
    assert mean == approx(2.5)
    assert half == approx(2.054260, abs=1e-6)


def test_two_prompts_are_the_fewest_for_an_interval():
    # 0 and 1: s = 1/sqrt(2), half = 12.706205 / sqrt(2) / sqrt(2) = 6.353102. Wide, but honest.
    mean, half = mean_intervals(np.array([0.0, 1.0]))
    assert (mean, half) == (approx(0.5), approx(6.353102, abs=1e-6))
    mean, half = mean_intervals(np.array([0.3]))
    assert mean == approx(0.3)
    assert half is None, "one prompt has no interval: neither zero nor NaN"


def test_prompts_are_the_first_axis_and_all_others_are_kept():
    samples = np.arange(24.0).reshape(4, 3, 2)
    mean, half = mean_intervals(samples)
    assert mean.tolist() == [[9.0, 10.0], [11.0, 12.0], [13.0, 14.0]]
    # In each column four values 6 apart: s = 6 sqrt(5/3), so six times the interval of 1, 2, 3, 4.
    assert half == approx(np.full((3, 2), 6 * 2.054260), abs=1e-5)


def test_paired_differences_are_narrower_than_what_they_are_made_of():
    # Scores 0.1, 0.5, 0.9 and controls 0.0, 0.5, 0.7: differences 0.1, 0.0, 0.2, mean 0.1, s = 0.1.
    score, control = np.array([0.1, 0.5, 0.9]), np.array([0.0, 0.5, 0.7])
    mean, half = mean_intervals(score - control)
    assert mean == approx(0.1)
    assert half == approx(4.302653 * 0.1 / math.sqrt(3), abs=1e-6)
    assert half < mean_intervals(score)[1]


def test_equal_values_have_an_interval_of_no_width_and_are_left_unchanged():
    samples = np.full((5, 2), 0.25)
    mean, half = mean_intervals(samples)
    assert mean.tolist() == [0.25, 0.25]
    assert half.tolist() == [0.0, 0.0]
    assert (samples == 0.25).all()


@pytest.mark.parametrize("n", [2, 3, 8, 16])
def test_intervals_of_normal_draws_cover_19_times_in_20(rng, n):
    # 20,000 intervals: the sampling error is sqrt(0.95 * 0.05 / 20,000) = 0.0015. With 1.96 for t they cover
    # 0.700, 0.811, 0.909 and 0.931.
    mean, half = mean_intervals(rng.normal(0.3, 0.1, size=(n, 20_000)))
    assert (np.abs(mean - 0.3) <= half).mean() == approx(0.95, abs=0.006)


def test_no_prompt_has_no_mean():
    with pytest.raises(AssertionError, match="a mean needs at least one prompt"):
        mean_intervals(np.zeros((0, 3)))
