"""A role over the revisions in a store: steps in order, the strongest head, the phase change of its scores."""

from __future__ import annotations

import math

import pytest

from headscope.errors import ArgumentError, NonFiniteError
from headscope.evidence.emergence.change import phase_change
from headscope.evidence.kinds import sweepable
from headscope.sweeps.plan import Job
from headscope.sweeps.run import Failure, Outcome, failed
from headscope.sweeps.store import Store

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000]


def rise(step):
    """From 0.02 to 0.9, halfway at step 64 on a logarithmic axis."""
    return 0.02 + 0.88 / (1 + math.exp(-3 * (math.log(step + 1) - math.log(65))))


def job(model, revision, content="", **settings):
    content, settings = f"{model} {revision} {content}", sweepable()["scan"].settings | settings
    return Job(model=model, revision=revision, content=content, what="scan", settings=settings, dtype="auto")


def put(store, one, score):
    # Head L1H2 has the score, the others half of it; in the first step L0H0 leads.
    rows = [
        {"layer": layer, "head": head, "call": 0, "detector": "induction", "mean": mean, "ci_low": low, "ci_high": high}
        for layer, head, part in ((0, 0, 0.5), (1, 2, 1.0), (1, 3, 0.5))
        for mean, low, high in [(score * part, score * part - 0.01, score * part + 0.01)]
    ]
    store.put(Outcome(job=one, about={"family": "gpt_neox", "finished": "t"}, rows=rows))


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store", create=True)
    for step in STEPS:
        put(made, job("org/run", f"step{step}"), rise(step))
        put(made, job(f"/runs/first/checkpoint-{step}", None), rise(step))
    put(made, job("org/other", "step3"), 1.0)
    made.put(failed(job("org/run", "step9999"), Failure.of(NonFiniteError("why"))))
    put(made, job("org/run", "main"), 0.9)
    return made


def test_a_curve_is_of_one_period_and_says_which(store):
    # One head has 0.24 on runs of 50 and 0.588 on runs of 24: points of both would be a rise that never was.
    assert store.emergence("org/run").period == sweepable()["scan"].settings["period"] == 50
    assert "runs of about 50 tokens" in repr(store.emergence("org/run"))
    put(store, job("org/run", "step8000", period=24), 0.9)
    with pytest.raises(ArgumentError, match=r"runs of different lengths \(24, 50\)"):
        store.emergence("org/run")
    assert store.emergence("/runs/first").period == 50


@pytest.mark.parametrize("model", ["org/run", "/runs/first"])
def test_the_strongest_head_at_each_step_and_its_phase_change(store, model):
    found = store.emergence(model)
    assert found.steps == tuple(STEPS)
    assert {str(head) for head in found.best} == {"L1H2"}
    assert [one.mean for one in found.scores] == [pytest.approx(rise(step)) for step in STEPS]
    assert found.change.found is not None
    assert 40 < found.change.found.step.mean < 100
    ends = [(rise(step) - 0.01, rise(step) + 0.01) for step in STEPS]
    wanted = phase_change(STEPS, [rise(step) for step in STEPS], ends).found
    assert found.change.found.step.mean == pytest.approx(wanted.step.mean)


def test_what_has_no_scan_or_no_step_is_told(store):
    assert store.emergence("org/run").missing == {"step9999": "why", "main": "its name holds no step"}
    assert store.emergence("/runs/first").missing == {}


def test_steps_are_those_that_emergence_reads(store):
    # Of step1000-tokens4B the last digits are 4's, of the commit 1234's: neither is a step.
    put(store, job("org/tokens", "step1000-tokens4B"), 0.5)
    put(store, job("org/tokens", "a" * 36 + "1234"), 0.5)
    found = store.emergence("org/tokens")
    assert found.steps == (1000,)
    assert found.missing == {"a" * 36 + "1234": "its name holds no step"}


def test_two_scans_of_one_step_are_refused(store):
    put(store, job("org/run", "step64", "another commit"), 0.5)
    with pytest.raises(ArgumentError, match="has two scans of step 64 of 'org/run'"):
        store.emergence("org/run")


@pytest.mark.parametrize(("model", "detector"), [("org/none", "induction"), ("org/run", "copying")])
def test_nothing_to_follow_is_told(store, model, detector):
    with pytest.raises(ArgumentError, match=f"has no scan of '{detector}' of '{model}'; sweep its revisions"):
        store.emergence(model, detector=detector)
