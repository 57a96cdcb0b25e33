"""Sweeps in this process: rows are the functions' own, nothing is done twice, nothing that fails stops the rest."""

from __future__ import annotations

import json
import re
import shutil
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, ModelNotFound
from headscope.evidence.circuit import measure as circuit
from headscope.sweeps import plan, run
from headscope.sweeps.tables import ABOUT
from tests import forked

SCAN = {"scan": {"n_prompts": 4, "period": 8}}
SMALL = SCAN | {
    "verify": {"n_prompts": 3, "period": 8, "top": 2},
    "circuit": {"n_prompts": 6, "period": 24},
    "icl": {"n_windows": 4, "window": 64, "early": 5},
}
ALL = ("scan", "verify", "circuit", "icl")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Every kind of measurement of the demo model, in one store."""
    path = tmp_path_factory.mktemp("demo") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuit, "VERIFY_PROMPTS", 4)  # a circuit verifies first, on prompts of its own
        yield hs.sweep(["demo"], path, what=ALL, settings=SMALL), hs.open_store(path)


def rows(store, table):
    return store.to_frame(table).drop(columns=list(ABOUT))


def same(given, wanted):
    wanted = wanted.drop(columns="model", errors="ignore")  # a store names it in every row
    pd.testing.assert_frame_equal(given, wanted, check_exact=True, check_dtype=False)


def test_scan_and_verify_rows_are_the_frames_of_the_functions(demo):
    model = hs.load("demo")
    same(rows(demo[1], "scan"), hs.scan(model, probe=hs.repeated_tokens(model, **SMALL["scan"])).to_frame())
    probe = hs.repeated_tokens(model, n_prompts=3, period=8)
    same(rows(demo[1], "verify"), hs.verify(model, probe=probe, top=2).to_frame())


def test_circuit_and_icl_rows_are_what_the_functions_give(demo):
    model = hs.load("demo")
    edges = hs.trace_circuit(model, probe=hs.repeated_tokens(model, n_prompts=6, period=24)).to_frame()
    assert len(edges) > 0
    same(rows(demo[1], "circuit"), edges)
    found = hs.icl(model, **SMALL["icl"])
    (row,) = rows(demo[1], "icl").to_dict("records")
    assert (row["score"], (row["ci_low"], row["ci_high"])) == (found.score.mean, found.score.ci95)
    assert list(row["loss"]) == list(found.loss.mean)
    assert (row["early"], row["late"], row["loss_early"]) == (5, 63, found.loss.at(5).mean)


def test_rows_say_what_they_are_about_and_jobs_how_to_repeat_them(demo):
    result, store = demo
    assert (result.planned, result.done, result.skipped, result.failed, result.failures) == (4, 4, 0, 0, ())
    jobs = store.to_frame("jobs")
    assert sorted(jobs["what"]) == sorted(ALL)
    assert set(jobs["model"]) == {"demo"}
    assert set(jobs["n_parameters"]) == {sum(one.numel() for one in hs.load("demo").hf.parameters())}
    for table in ALL:
        frame = store.to_frame(table)
        (job,) = jobs[jobs["what"] == table].to_dict("records")
        assert set(frame["job"]) == {job["job"]}
        assert set(frame["support"]) == {"exact"}
        assert job["rows"] == len(frame)
        assert json.loads(job["settings"]).items() >= SMALL[table].items()
        assert json.loads(job["versions"])["headscope"] == hs.__version__
        assert job["wall_s"] > 0
    assert (jobs["load_s"] > 0).sum() == 1, "one load for four jobs"


def test_a_second_sweep_does_nothing_and_loads_nothing(demo, monkeypatch):
    monkeypatch.setattr(run, "_load", None)
    again = hs.sweep(["demo"], demo[1].path, what=ALL, settings=SMALL)
    assert (again.planned, again.done, again.skipped, again.failed) == (4, 0, 4, 0)


def test_other_settings_are_other_jobs(demo, tmp_path):
    shutil.copytree(demo[1].path, tmp_path / "store")
    found = hs.sweep(["demo"], tmp_path / "store", settings={"scan": SCAN["scan"] | {"seed": 1}})
    assert (found.planned, found.done) == (1, 1)
    assert hs.open_store(tmp_path / "store").to_frame("scan")["job"].nunique() == 2


def test_the_document_is_the_result(demo):
    document = json.loads(demo[0].to_json())
    assert document == {
        "schema": "headscope.sweep/1", "planned": 4, "done": 4, "skipped": 0, "failed": 0,
        "store": demo[1].path, "failures": [], "damaged": [],
    }  # fmt: skip


@pytest.fixture
def five_bad(tmp_path):
    """A corrupt file, a missing revision, a mamba, a NaN, and a model of 4 TB."""
    made = {}
    for name, family in (("corrupt", "llama"), ("mamba", "mamba"), ("nan", "llama"), ("huge", "llama")):
        made[name] = tmp_path / "bad" / name
        tiny_causal_lm(family).save_pretrained(made[name])
    weights = made["corrupt"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    tensors = load_file(made["nan"] / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, made["nan"] / "model.safetensors", metadata={"format": "pt"})
    header = {"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(header).encode()
    (made["huge"] / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return {name: str(path) for name, path in made.items()} | {"revision": "someone/model@v7"}


REASONS = {
    "corrupt": ("ModelError", r"the weights of .*corrupt' cannot be read|.*corrupt' could not be loaded"),
    "mamba": ("UnsupportedModel", r"mamba.* cannot be used: .*[Cc]hoose a decoder-only model"),
    "nan": ("NonFiniteError", r"(model\.)?norm\.weight"),
    "huge": (
        "ModelTooLarge",
        r"needs 4,000\.0 GB for its weights, but this machine has [\d.,]+ GB free; use a smaller",
    ),
    "revision": ("ModelNotFound", r"no model 'someone/model' at revision 'v7': .*check the names and the network"),
}


def test_five_bad_models_do_not_stop_the_rest_and_are_listed_with_reasons(five_bad, save_models, tmp_path):
    good = save_models(3)
    given = [good[0], *five_bad.values(), *good[1:]]
    found = hs.sweep(given, tmp_path / "store", settings=SCAN)
    assert (found.planned, found.done, found.skipped, found.failed) == (8, 3, 0, 5)
    listed = {f"{one.model}@{one.revision}" if one.revision else one.model: one for one in found.failures}
    store = hs.open_store(tmp_path / "store")
    for name, (error, reason) in REASONS.items():
        one = listed[five_bad[name]]
        assert one.error == error
        assert re.search(reason, one.reason), one.reason
        assert "\n" not in one.reason
        assert error in store.traceback(one.traceback)
    jobs = store.to_frame("jobs").set_index("model")
    assert (jobs["status"] == "failed").sum() == 5
    assert set(store.to_frame("scan")["model"]) == set(map(str, good))

    # They are not tried again unless asked to, and still listed.
    again = hs.sweep(given, tmp_path / "store", settings=SCAN)
    assert (again.done, again.skipped, again.failed) == (0, 3, 5)
    assert {one.model: one.reason for one in again.failures} == {one.model: one.reason for one in found.failures}


def test_a_model_that_was_mended_is_tried_again_unasked(five_bad, tmp_path):
    store = tmp_path / "store"
    assert hs.sweep([five_bad["nan"]], store, settings=SCAN).failed == 1
    tiny_causal_lm("llama").save_pretrained(five_bad["nan"])
    found = hs.sweep([five_bad["nan"]], store, settings=SCAN)
    assert (found.done, found.failed) == (1, 0)
    assert list(hs.open_store(store).to_frame("jobs")["status"]) == ["done"]


def test_a_folder_that_changes_between_plan_and_load_fails_and_is_measured_by_the_next_sweep(
    save_models, tmp_path, monkeypatch
):
    (folder,) = save_models(1)
    real = run._load

    def load_and_change(job, loading):
        model = real(job, loading)
        tiny_causal_lm("llama", seed=9).save_pretrained(folder)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(run, "_load", load_and_change)
        found = hs.sweep([folder], tmp_path / "store", what=("scan", "icl"), settings=SMALL)
    assert (found.done, found.failed) == (0, 2)
    assert {one.reason for one in found.failures} == {f"{str(folder)!r} changed while the sweep ran; run it again."}
    assert hs.sweep([folder], tmp_path / "store", settings=SCAN).done == 1


def test_a_failure_from_when_the_model_was_out_of_reach_goes_once_the_job_is_found_done(demo, tmp_path, monkeypatch):
    store = shutil.copytree(demo[1].path, tmp_path / "store")

    def unreachable(*_):
        raise ModelNotFound("the hub could not be reached")

    with monkeypatch.context() as patch:
        patch.setattr(plan, "content_of", unreachable)
        assert hs.sweep(["demo"], store, settings=SCAN).failed == 1
    assert len(hs.open_store(store).failures()) == 1
    assert hs.sweep(["demo"], store, settings=SCAN).skipped == 1
    assert hs.open_store(store).failures() == []


def test_a_failure_of_the_moment_is_retried_on_request(save_models, tmp_path, monkeypatch):
    folders = save_models(2)
    real = run.measure

    def flaky(model, job):
        if job.model == str(folders[0]):
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(model, job)

    with monkeypatch.context() as patch:
        patch.setattr(run, "measure", flaky)
        (one,) = hs.sweep(folders, tmp_path / "store", settings=SCAN).failures
    assert one.reason.startswith("memory ran out (")
    assert hs.sweep(folders, tmp_path / "store", settings=SCAN).failed == 1
    found = hs.sweep(folders, tmp_path / "store", settings=SCAN, retry_failed=True)
    assert (found.done, found.skipped, found.failed) == (1, 1, 0)


def test_a_defect_fails_its_job_alone_and_keeps_its_traceback(save_models, tmp_path, monkeypatch):
    real = run.measure
    monkeypatch.setattr(run, "measure", lambda model, job: 1 / 0 if job.what == "verify" else real(model, job))
    found = hs.sweep(save_models(1), tmp_path / "store", what=("verify", "scan"), settings=SMALL)
    assert (found.done, found.failed) == (1, 1)
    (one,) = found.failures
    assert "a defect in headscope or in the model's own code (ZeroDivisionError: division by zero)" in one.reason
    assert "test_sweep.py" in hs.open_store(tmp_path / "store").traceback(one.traceback)


def test_an_interrupted_sweep_goes_on_where_it_stopped(save_models, assert_same, tmp_path):
    folders = save_models(4)

    def stop(done, total):
        assert total == 4
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hs.sweep(folders, tmp_path / "shaken", settings=SCAN, progress=stop)
    found = hs.sweep(folders, tmp_path / "shaken", settings=SCAN)
    assert (found.done, found.skipped) == (2, 2)
    hs.sweep(folders, tmp_path / "calm", settings=SCAN)
    assert_same(hs.open_store(tmp_path / "shaken"), hs.open_store(tmp_path / "calm"))


def test_two_sweeps_at_once_share_one_store(save_models, assert_same, tmp_path):
    folders, shared = save_models(10), tmp_path / "shared"
    arguments = [*map(str, folders), "--store", str(shared), "--n-prompts", "4", "--period", "8", "--json"]
    other = forked.headscope("sweep", *arguments)

    def meet(done, total):
        # Both are in the middle: after our first job we wait for the other's.
        end = time.monotonic() + 120
        while done == 1 and len(list(shared.glob("scan/*.parquet"))) < 2 and time.monotonic() < end:
            assert other.poll() is None
            time.sleep(0.01)

    mine = hs.sweep(folders, shared, settings=SCAN, progress=meet)
    theirs = json.loads(other.communicate(timeout=120)[0])
    assert mine.failed == theirs["failed"] == 0
    # Each found jobs that the other had done; a job that both did at once counts for both.
    assert mine.skipped >= 1
    assert mine.done + theirs["done"] >= 10
    hs.sweep(folders, tmp_path / "calm", settings=SCAN)
    assert_same(hs.open_store(shared), hs.open_store(tmp_path / "calm"))


def test_rows_from_a_url_are_those_from_a_folder(save_models, assert_same, tmp_path):
    folders, url = save_models(2), f"memory://{tmp_path.name}"
    hs.sweep(folders, url, settings=SCAN)
    hs.sweep(folders, tmp_path / "store", settings=SCAN)
    assert_same(hs.open_store(url), hs.open_store(tmp_path / "store"))


def test_names_that_look_like_paths_leave_nothing_outside_the_store(save_models, tmp_path):
    (good,) = save_models(1)
    odd = tmp_path / "models" / "..odd name; $x"
    good.rename(odd)
    store = tmp_path / "a" / "b" / "store"
    before = set(tmp_path.rglob("*"))
    found = hs.sweep([str(odd), "../../outside", "a/../../b", "x\x00y"], store, settings=SCAN)
    assert (found.done, found.failed) == (1, 3)
    made = set(tmp_path.rglob("*")) - before - {store.parent, store.parent.parent}
    assert made
    assert all(path == store or path.is_relative_to(store) for path in made)
    # What a file is called says nothing of the model: hashes, and the store's own words.
    assert {"outside", "odd", "x\x00y"}.isdisjoint(part for path in made for part in re.split(r"\W", path.name))


def test_arguments_are_checked_before_anything_is_made(tmp_path):
    with pytest.raises(ArgumentError, match="engine='dask' is not known; use one of inline, ray"):
        hs.sweep(["demo"], tmp_path / "store", engine="dask")
    with pytest.raises(ArgumentError, match="at least one model"):
        hs.sweep([], tmp_path / "store")
    assert not (tmp_path / "store").exists()
