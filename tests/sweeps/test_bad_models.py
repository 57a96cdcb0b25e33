"""One bad model never ends a sweep: it is a row, and the others are measured."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import headscope as hs
from headscope.training.demo import demo_path

SETTINGS = {"scan": {"n_prompts": 2, "period": 8}, "icl": {"n_windows": 2, "window": 64, "early": 8, "late": 60}}


def swept(models, store, **options):
    result = hs.sweep(
        models, store, settings={kind: SETTINGS[kind] for kind in options.get("what", ("scan",))}, **options
    )
    jobs = hs.open_store(store).to_frame("jobs")
    assert len(jobs) == result.planned == result.done + result.failed
    return result, jobs


@pytest.fixture
def panicking(tmp_path) -> Path:
    """The packaged model with a template that names a token which is not there: its tokenizer panics on any text."""
    folder = tmp_path / "panicking"
    shutil.copytree(demo_path(), folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<gone>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {},
    }
    path.write_text(json.dumps(document))
    return folder


def test_a_tokenizer_that_panics_is_an_error_of_one_line(panicking):
    model = hs.load(panicking)
    with pytest.raises(hs.errors.TokenError, match="the tokenizer of .* fails on this text .PanicException"):
        hs.probe_text(model, "hello")


@pytest.mark.parametrize("error", [SystemExit(3), BaseException("a panic")])
def test_what_is_no_exception_fails_its_job_alone(tmp_path, save_models, monkeypatch, error):
    bad, good = save_models(2)
    from headscope.sweeps import run

    real = run._load

    def load(job, loading):
        if job.model == str(bad):
            raise error
        return real(job, loading)

    monkeypatch.setattr(run, "_load", load)
    result, _ = swept([bad, good], tmp_path / "store")
    assert (result.done, result.failed) == (1, 1)
    assert result.failures[0].error == type(error).__name__


def test_an_error_that_cannot_be_printed_is_a_row(tmp_path, save_models, monkeypatch):
    class Silent(Exception):
        def __str__(self):
            raise ValueError

    def measure(model, job):
        raise Silent

    monkeypatch.setattr("headscope.sweeps.run.measure", measure)
    result, _ = swept(save_models(1), tmp_path / "store")
    assert result.failures[0].error == "Silent"


def test_ctrl_c_still_ends_a_sweep(tmp_path, save_models, monkeypatch):
    def measure(model, job):
        raise KeyboardInterrupt

    monkeypatch.setattr("headscope.sweeps.run.measure", measure)
    with pytest.raises(KeyboardInterrupt):
        hs.sweep(save_models(1), tmp_path / "store")


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems hold UTF-8 names alone")
def test_a_folder_whose_name_is_not_utf8_is_a_row_beside_the_others(tmp_path, save_models):
    one, other = save_models(2)
    named = os.fsdecode(os.fsencode(one.parent) + b"/caf\xe9\xff")
    os.rename(one, named)
    result, jobs = swept([named, other], tmp_path / "store")
    assert result.done >= 1
    assert sorted(Path(name).name for name in jobs["model"]) == sorted([r"caf\udce9\udcff", other.name])


def test_what_cannot_be_read_is_a_row(tmp_path, save_models):
    (good,) = save_models(1)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    result, _ = swept([good, loop, "~no-such-user/x", "a\0b"], tmp_path / "store")
    assert (result.done, result.failed) == (1, 3)


def test_a_panic_in_a_measurement_is_a_row(panicking, tmp_path, monkeypatch, capfd):
    from headscope.sweeps import run

    real = run.measure

    def measure(model, job):
        model.tokenizer("hello")
        return real(model, job)

    monkeypatch.setattr(run, "measure", measure)
    result, _ = swept([panicking, "demo"], tmp_path / "store")
    capfd.readouterr()  # the library prints its panic
    assert (result.planned, result.done, result.failed) == (2, 1, 1)
    assert result.failures[0].error == "PanicException"
