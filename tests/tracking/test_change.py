"""The phase change on curves whose step and width we set, on curves that have none, and on a trained model's."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from pytest import approx

from headscope.errors import ArgumentError
from headscope.evidence.emergence.change import phase_change
from headscope.stats import mean_intervals

STEPS = np.arange(0, 1001, 50)


def rise(steps, step, scale, low=0.03, high=0.93):
    return low + (high - low) / (1 + np.exp(-(np.asarray(steps) - step) / scale))


def test_a_logistic_without_noise_gives_its_own_numbers():
    # Nine tenths are reached at ln 9 scales past the middle, one tenth as far before it: 2 ln 9 * 40 = 175.8 steps.
    found = phase_change(STEPS, rise(STEPS, 433, 40)).found
    assert found.step.mean == approx(433, abs=0.5)
    assert found.width.mean == approx(2 * math.log(9) * 40, rel=0.01)
    assert (found.low, found.high) == (approx(0.03, abs=1e-3), approx(0.93, abs=1e-3))
    assert found.step.ci95[0] <= 433 <= found.step.ci95[1]


def test_a_rise_in_the_logarithm_of_steps_is_one_too():
    # Checkpoints as published ones lie; a tenth is done at 1500 / 9^0.4 and nine tenths at 1500 * 9^0.4.
    steps = [0, *(2**n for n in range(10)), 1000, 2000, 3000, 4000, 6000, 8000, 16000, 64000, 143000]
    with np.errstate(divide="ignore"):
        scores = rise(np.log(steps), math.log(1500), 0.4)
    found = phase_change(steps, scores).found
    assert found.step.mean == approx(1500, rel=0.01)
    assert found.width.mean == approx(1500 * (9**0.4 - 9**-0.4), rel=0.02)


def test_a_jump_between_two_checkpoints_is_known_to_lie_between_them():
    found = phase_change(STEPS, np.where(STEPS > 420, 0.9, 0.02)).found
    assert 400 < found.step.mean < 450
    assert found.step.ci95 == (approx(400, abs=2), approx(450, abs=2))
    low, high = found.width.ci95
    assert low == 0.0
    assert high < 50


@pytest.mark.parametrize(
    ("step", "scale", "noise", "gap"), [(700, 60, 0.02, 50), (700, 10, 0.02, 50), (480, 40, 0.03, 100)]
)
def test_intervals_cover_step_and_width_under_noise(rng, step, scale, noise, gap):
    # With coverage 0.95, 60 redraws miss 3 times on average, and more than 8 times in 1 of 400 tries.
    steps = np.arange(0, 1201, gap)
    misses = np.zeros(2)
    for _ in range(60):
        found = phase_change(steps, rise(steps, step, scale) + noise * rng.normal(size=len(steps))).found
        for number, (one, true) in enumerate(((found.step, step), (found.width, 2 * math.log(9) * scale))):
            misses[number] += not one.ci95[0] <= true <= one.ci95[1]
    assert (misses <= 8).all()


@pytest.mark.parametrize("width", [300, 150, 75])
def test_intervals_cover_step_and_width_where_the_scatter_sits_inside_the_rise(rng, width):
    # Of 40, 33 or less with a chance of 1 in 300 at 0.95; with one variance for the whole curve 27, 16 and 10 of the
    # steps. Three checkpoints of a wide rise stand on one level by chance in one curve of eight, and are no plateau.
    steps = np.arange(0, 1201, 50)
    share = rise(steps, 600, width / (2 * math.log(9)), low=0, high=1)
    noise, held = 0.1 * np.sqrt(4 * share * (1 - share)) + 0.005, np.zeros(2)
    for _ in range(40):
        change = phase_change(steps, 0.03 + 0.9 * share + noise * rng.normal(size=len(steps)))
        assert "twice" not in change.reason
        for number, (one, true) in enumerate(((change.found.step, 600), (change.found.width, width))):
            held[number] += one.ci95[0] <= true <= one.ci95[1]
    assert (held >= 34).all()


def test_two_rises_are_named_as_two(rng):
    steps = np.arange(0, 2001, 50)
    scores = rise(steps, 500, 30, low=0.03, high=0.43) + rise(steps, 1400, 40, low=0, high=0.45)
    change = phase_change(steps, scores + 0.01 * rng.normal(size=len(steps)))
    assert re.search(r"rises twice: from 0\.0\d to 0\.4\d about step (49|50)\d and again from", change.reason)
    # The larger is the one reported.
    assert change.found.step.mean == approx(1400, rel=0.02)
    # One wide rise is one.
    assert "twice" not in phase_change(steps, rise(steps, 900, 200)).reason


def test_the_intervals_of_the_scores_count_too(rng):
    # Each prompt's curve rises at a step of its own; the scatter of checkpoints alone would promise far too much.
    steps = np.arange(0, 501, 25)
    covered = {"with": 0, "without": 0}
    for _ in range(40):
        prompts = rise(steps, rng.normal(260, 15, size=(8, 1)), 10)
        mean, ci95 = mean_intervals(prompts)
        scores = mean + 0.005 * rng.normal(size=len(steps))
        ends = list(zip(*(end.tolist() for end in ci95), strict=True))
        for name, ci95 in (("with", ends), ("without", None)):
            low, high = phase_change(steps, scores, ci95).found.step.ci95
            covered[name] += low <= 260 <= high
    assert covered["with"] >= 34
    assert covered["without"] < 20


SPIKE = [0.02] * 8 + [0.9] + [0.02] * 12


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ([], "0 of the 6 checkpoints"),
        ([0.5], "1 of the 6 checkpoints"),
        ([0.02, 0.9], "2 of the 6 checkpoints"),
        (0.02 + 0.01 * np.sin(STEPS), "it stays between 0.01 and 0.03"),
        (0.9 + 0.01 * np.sin(STEPS), "it stays between 0.89 and 0.91"),
        (rise(STEPS, 500, 50, low=0.9, high=0.1), "it falls from 0.90 to 0.10"),
        (rise(STEPS, 500, 50, high=0.2), "no score is 0.2 above an earlier one"),
        (SPIKE, "one rise explains .* falls again"),
        ([0.9, *SPIKE[1:]], "at the first checkpoint already"),
        ([0.02] * 20 + [0.9], "only one checkpoint is after the rise, which may be a spike"),
        (rise(STEPS, 300, 20) - rise(STEPS, 700, 20, low=0, high=0.8), "falls again"),
        (rise(STEPS, 20, 60), "only one checkpoint is before the rise"),
        (rise(STEPS, 60, 60), "began before the first checkpoint"),
        (rise(STEPS, 950, 60), "not over at the last checkpoint"),
        (STEPS / 1000, "not over at the last checkpoint"),
    ],
    ids=[
        *("none", "one", "two", "flat", "risen", "falling", "small", "spike", "high first", "spike at the end"),
        *("falls again", "one before", "already rising", "still rising", "ramp"),
    ],
)
def test_where_there_is_no_phase_change_the_reason_says_why(scores, reason):
    change = phase_change(STEPS[: len(scores)], scores)
    assert change.found is None
    assert re.search(reason, change.reason), change.reason


def test_noise_alone_is_none(rng):
    assert all(phase_change(STEPS, rng.uniform(0, 1, len(STEPS))).found is None for _ in range(20))


def test_a_rise_among_six_checkpoints_is_found():
    found = phase_change([100, 200, 300, 400, 500, 600], [0.02, 0.02, 0.03, 0.9, 0.91, 0.92]).found
    assert found.step.ci95 == (approx(300, abs=3), approx(400, abs=3))


def test_bad_curves_are_refused():
    with pytest.raises(ArgumentError, match="3 steps and 2 scores"):
        phase_change([0, 1, 2], [0.1, 0.2])
    with pytest.raises(ArgumentError, match="finite"):
        phase_change([0, 1], [0.1, float("nan")])
    with pytest.raises(ArgumentError, match="ascend"):
        phase_change([0, 2, 1], [0.1, 0.2, 0.3])
    with pytest.raises(ArgumentError, match="do not make a curve"):
        phase_change([0, 1], [0.1, 0.2], [(0.0, 0.2)])


def test_a_trained_models_change_is_where_a_person_marks_it():
    run = json.loads((Path(__file__).parent / "copy_run.json").read_text())
    for role, curve in run["curves"].items():
        found = phase_change(run["steps"], curve["scores"], [tuple(one) for one in curve["ci95"]]).found
        assert found.step.mean == approx(curve["marked_by_hand"], rel=0.1), role
        assert found.step.ci95[0] <= curve["marked_by_hand"] <= found.step.ci95[1], role
