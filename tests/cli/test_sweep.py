"""`headscope sweep`, `query` and `mosaic`: documents are the API's, failures are listed, Ctrl-C says how to go on."""

from __future__ import annotations

import json
import os
import signal

import pytest

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.sweeps import run
from tests import forked

SMALL = ("--n-prompts", "4", "--period", "8")


@pytest.fixture
def store(headscope, tmp_path):
    path = tmp_path / "store"
    assert headscope("sweep", "demo", "--store", path, *SMALL).code == 0
    return path


def test_json_equals_the_api(headscope, tmp_path):
    ran = headscope("sweep", "demo", "--store", tmp_path / "cli", *SMALL, "--json")
    assert (ran.code, ran.err) == (0, "")
    wanted = hs.sweep(["demo"], tmp_path / "api", settings={"scan": {"n_prompts": 4, "period": 8}})
    assert json.loads(ran.out) == wanted.to_dict() | {"store": str(tmp_path / "cli")}
    jobs = [hs.open_store(tmp_path / name).to_frame("jobs")["job"].tolist() for name in ("cli", "api")]
    assert jobs[0] == jobs[1]


def test_options_and_the_plan_make_the_same_jobs(headscope, tmp_path):
    plan = tmp_path / "plan.toml"
    plan.write_text('models = ["demo"]\nwhat = ["scan", "icl"]\n[scan]\nn_prompts = 9\n[icl]\nn_windows = 3\n')
    headscope("sweep", "--from", plan, "--store", tmp_path / "a", "--n-prompts", 4, "--seed", 3, "--dtype", "float64")
    jobs = hs.open_store(tmp_path / "a").to_frame("jobs").set_index("what")
    scan, icl = (json.loads(jobs.loc[what, "settings"]) for what in ("scan", "icl"))
    assert (scan["n_prompts"], scan["seed"], icl["n_windows"], icl["seed"]) == (4, 3, 3, 3)
    assert set(jobs["dtype"]) == {"float64"}


def test_failures_are_listed_and_the_exit_code_is_0(headscope, tmp_path):
    tiny_causal_lm("mamba").save_pretrained(tmp_path / "mamba")
    ran = headscope("sweep", "demo", tmp_path / "mamba", "--store", tmp_path / "s", *SMALL)
    assert ran.code == 0
    assert ran.out == f"2 jobs: 1 done, 0 skipped, 1 failed\nStore: {tmp_path / 's'}\n"
    listed, hint = ran.err.splitlines()
    assert listed.startswith(f"failed: scan of {tmp_path / 'mamba'}: ")
    assert "cannot be used" in listed
    assert hint == "--retry-failed tries them again."
    assert (
        json.loads(headscope("sweep", tmp_path / "mamba", "--store", tmp_path / "s", *SMALL, "--json").out)["failed"]
        == 1
    )


def interrupted(*arguments):
    """The command line, with Ctrl-C in the midst of its second job."""
    real = run.measure

    def measure(model, job):
        if job.what == "icl":
            os.kill(os.getpid(), signal.SIGINT)
        return real(model, job)

    run.measure = measure
    forked.main(*arguments)


def test_ctrl_c_leaves_a_store_that_goes_on_and_says_so(headscope, tmp_path):
    arguments = ("sweep", "demo", "--what", "scan", "--what", "icl", "--store", str(tmp_path / "s"), *SMALL)
    process = forked.Forked(interrupted, *arguments)
    assert process.communicate() == (
        "",
        f"headscope: stopped by Ctrl-C; 1 of 2 jobs were finished in this run; what is done is in {tmp_path / 's'}, "
        "and the same command goes on from there.\n",
    )
    assert process.returncode == 130
    assert "1 done, 1 skipped, 0 failed" in headscope(*arguments).out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), "a sweep needs at least one model"),
        (("demo", "--what", "everything"), "what='everything' is not known"),
        (("demo", "--engine", "slurm"), "engine='slurm' is not known"),
        (("--from", "none.txt"), "cannot be read as a list of models"),
    ],
)
def test_bad_arguments_are_one_line(headscope, tmp_path, monkeypatch, arguments, why):
    monkeypatch.chdir(tmp_path)
    ran = headscope("sweep", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert why in ran.err
    assert ran.err.count("\n") == 1


def test_a_query_prints_a_table_or_records(headscope, store):
    sql = "SELECT layer, head, mean FROM scan WHERE detector = 'induction' ORDER BY mean DESC LIMIT 2"
    records = json.loads(headscope("query", store, sql, "--json").out)
    frame = hs.open_store(store).query(sql)
    assert [one["head"] for one in records] == frame["head"].tolist()
    printed = headscope("query", store, sql).out.splitlines()
    assert printed[0].split() == ["layer", "head", "mean"]
    assert len(printed) == 3
    assert headscope("query", store, "SELECT * FROM icl").out == "no rows\n"
    ran = headscope("query", store, "COPY scan TO 'x'")
    assert (ran.code, ran.err.count("\n")) == (2, 1)


def test_a_mosaic_is_written_where_it_is_said(headscope, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert headscope("mosaic", store).out == "Mosaic: mosaic.svg (1 shown)\n"
    assert (tmp_path / "mosaic.svg").read_text() == hs.mosaic(store).to_svg() + "\n"
    (tmp_path / "mosaic.svg").unlink()
    ran = headscope("mosaic", store, "--json", "--by-depth", "--detector", "previous_token")
    assert json.loads(ran.out) == hs.mosaic(store, detector="previous_token", by_depth=True).to_dict()
    assert not (tmp_path / "mosaic.svg").exists(), "a picture only with --out"


def test_a_mosaic_by_role_shows_a_folder_of_atlases(headscope, tmp_path):
    asked = ("--quick", "--roles", "previous_token", "--n-prompts", "4")
    assert headscope("atlas", "demo", *asked, "--out", str(tmp_path / "all" / "demo")).code == 0
    out = tmp_path / "roles.svg"
    assert headscope("mosaic", str(tmp_path / "all"), "--by-role", "-o", str(out)).out == f"Mosaic: {out} (1 shown)\n"
    assert out.read_text() == hs.role_mosaic(tmp_path / "all").to_svg() + "\n"
    ran = headscope("mosaic", str(tmp_path / "all"), "--by-role", "--json")
    assert json.loads(ran.out) == hs.role_mosaic(tmp_path / "all").to_dict()
    ran = headscope("mosaic", str(tmp_path / "all"), "--by-role", "--detector", "induction")
    assert (ran.code, ran.err) == (2, "headscope: --by-role shows every role; leave out --detector.\n")


@pytest.mark.parametrize("command", ["sweep", "query", "mosaic"])
def test_help_shows_an_example(headscope, command):
    ran = headscope(command, "--help")
    assert ran.code == 0
    assert f"headscope {command} " in ran.out
