"""A small part of `make soak`, and that what it looks for is found."""

from __future__ import annotations

import json
from random import Random
from types import SimpleNamespace

import pytest
from pytest import approx

from headscope.errors import QUOTED, ArgumentError, brief
from soak import kills
from soak.fuzz import TARGETS, refused, run
from soak.long import watched
from soak.mutate import damaged_bytes, damaged_document, damaged_json


@pytest.mark.parametrize("part", TARGETS)
def test_damaged_inputs_are_refused_in_one_line_or_read_and_true(part, tmp_path, capfd):
    build, _ = TARGETS[part]
    for name, target in build(tmp_path).items():
        outcome = run(target, name=name, attempts=10, seconds=60)
        assert outcome.defects == ()
        assert outcome.tried == 10


def test_damage_is_damage_and_comes_from_the_seed():
    data = bytes(range(256)) * 4
    changed = [damaged_bytes(data, Random(seed)) for seed in range(200)]
    assert sum(one != data for one in changed) > 190  # what is overwritten, zeroed or moved may be the same by chance
    assert changed == [damaged_bytes(data, Random(seed)) for seed in range(200)]
    document = {"a": [1, 2.5, {"b": None}], "c": "text"}
    whole = json.dumps(document)
    assert sum(damaged_document(document, Random(seed)) != document for seed in range(200)) > 180
    assert json.dumps(document) == whole, "the original stays as it is"
    assert len({damaged_json(whole, Random(seed)) for seed in range(200)}) > 50


def raising(error):
    def attempt(random):
        raise error

    return attempt


def test_a_traceback_counts_as_a_defect_and_names_its_seed():
    outcome = run(raising(TypeError("no")), name="x", attempts=2, seconds=10, seed=3)
    assert (outcome.tried, outcome.read) == (2, 0)
    assert outcome.defects == ("x seed=3 number=0: TypeError: no", "x seed=3 number=1: TypeError: no")


@pytest.mark.parametrize("text", ["", "two\nlines", "x" * 5000])
def test_an_error_that_is_no_clear_line_is_a_defect(text):
    def action():
        raise ArgumentError(text)

    with pytest.raises(AssertionError, match="an error"):
        refused(action)


def test_what_an_error_repeats_is_short_and_on_one_line():
    assert brief("two\n lines") == "two lines"
    assert brief("x" * 1000) == "x" * QUOTED + "..."


def test_memory_that_grows_is_seen(monkeypatch):
    # 2 bytes more at each of 50 steps, from 100 on: medians of steps 5 to 9 and 40 to 49 are 114 and 189.
    sizes = iter(range(100, 200, 2))

    class Process:
        def memory_info(self):
            return SimpleNamespace(rss=next(sizes))

    monkeypatch.setattr("soak.long.psutil.Process", Process)
    grown = watched(lambda number: None, 50)
    assert (grown.times, grown.first_bytes, grown.last_bytes) == (50, 114, 189)
    assert grown.growth == approx(75 / 114)


@pytest.mark.parametrize("kind", ["sweeps", "runs", "reports"])
def test_what_is_killed_amid_its_work_ends_as_the_undisturbed(kind):
    found = getattr(kills, kind)(1)
    assert found.killed == 1
    assert found.defects == ()


def test_a_difference_after_a_kill_is_found(tmp_path):
    for name, loss in (("whole", 1.0), ("given", 2.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text(json.dumps({"loss": loss, "wall_s": loss}) + "\n")
    assert kills.differing_runs(tmp_path / "whole", tmp_path / "whole") is None
    assert kills.differing_runs(tmp_path / "whole", tmp_path / "given") == "the log"
    (tmp_path / "given" / ".step-x").mkdir()
    assert "files" in kills.differing_runs(tmp_path / "whole", tmp_path / "given")
