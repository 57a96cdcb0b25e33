"""The plans on paper: a simulation with known answers, and tables that are those of the measured unit costs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from pytest import approx

SCRIPT = Path(__file__).parents[2] / "scripts" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["scaling"]


def test_without_deaths_jobs_fill_the_workers(scaling, monkeypatch):
    monkeypatch.setattr(scaling, "DEATHS_PER_HOUR", 1e-12)
    done = scaling.simulate([10.0] * 7, workers=3, write_s=0.0)
    assert (done.wall_s, done.deaths, done.lost_s) == (30.0, 0, 0.0)  # 3 + 3 + 1
    assert scaling.simulate([30.0, 10.0, 10.0, 10.0], workers=2, write_s=0.0).wall_s == 30.0


def test_one_driver_writes_one_file_after_the_other(scaling, monkeypatch):
    monkeypatch.setattr(scaling, "DEATHS_PER_HOUR", 1e-12)
    done = scaling.simulate([1.0] * 100, workers=100, write_s=0.5)
    assert done.wall_s == approx(1 + 100 * 0.5)


def test_deaths_cost_the_time_spent_and_no_job_is_lost(scaling, monkeypatch):
    # One worker, jobs of an hour, deaths at rate 1 per hour: a job takes (e - 1) hours on average, in e tries.
    monkeypatch.setattr(scaling, "DEATHS_PER_HOUR", 1.0)
    done = scaling.simulate([3600.0] * 4000, workers=1, write_s=0.0)
    assert done.wall_s / 4000 / 3600 == approx(2.71828 - 1, rel=0.05)
    assert done.deaths / 4000 == approx(2.71828 - 1, rel=0.05)
    assert done.wall_s == approx(4000 * 3600 + done.lost_s)


def test_the_committed_tables_are_those_of_the_committed_units(scaling):
    assert scaling.TABLES.read_text() == scaling.tables(json.loads(scaling.UNITS.read_text()))
