"""What a sweep will do: which jobs there are, and when a job is the same job."""

from __future__ import annotations

import inspect
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import RevisionNotFoundError

import headscope as hs
from headscope.errors import ArgumentError, ModelNotFound
from headscope.evidence.kinds import sweepable
from headscope.probes.repeated import PERIOD
from headscope.sweeps import plan
from headscope.sweeps.plan import Job, content_of, fingerprint, make_plan, read_wanted

JOB = Job(
    model="gpt2",
    revision="main",
    content="a" * 40,
    what="scan",
    settings=dict(sweepable()["scan"].settings),
    dtype="auto",
)


@pytest.mark.parametrize(
    "change",
    [{"model": "gpt3"}, {"content": "b" * 40}, {"what": "icl"}, {"settings": {"seed": 1}}, {"dtype": "float32"}],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_the_rows_changes_the_identity(change):
    assert replace(JOB, **change).identity != JOB.identity
    assert (replace(JOB, **change).request == JOB.request) == ("content" in change)


def test_two_names_of_one_commit_are_one_job():
    assert replace(JOB, revision="v1").identity == JOB.identity
    assert replace(JOB, revision="v1").request != JOB.request


def test_a_new_code_schema_makes_every_job_new(monkeypatch):
    before = JOB.identity
    monkeypatch.setattr(plan, "CODE_SCHEMA", plan.CODE_SCHEMA + 1)
    assert JOB.identity != before


def test_the_defaults_are_those_of_the_functions():
    for what, function in (("verify", hs.verify), ("icl", hs.icl), ("scan", hs.repeated_tokens)):
        known = inspect.signature(inspect.unwrap(function)).parameters
        for name, value in sweepable()[what].settings.items():
            if name in known:
                usual = known[name].default
                # repeated_tokens takes None for 50, or the longest that fits; a sweep names its period.
                assert (PERIOD if name == "period" and usual is None else usual) == value, (what, name)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 20_000)  # 5 MB
    return made


def test_a_fingerprint_tells_content_not_place_or_time(folder, tmp_path):
    before = fingerprint(folder)
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(folder / "model.safetensors", (1, 1))
    assert fingerprint(folder) == before == fingerprint(tmp_path / "copy")
    (folder / "logs").mkdir()
    assert fingerprint(folder) == before, "what lies below is no part of the checkpoint"
    (folder / "config.json").write_text("{ }")
    assert fingerprint(folder) != before


@pytest.mark.parametrize("place", [0, 2_500_000, -1], ids=["head", "middle", "end"])
def test_one_byte_of_the_weights_counts_also_where_files_are_not_read_whole(folder, place, monkeypatch):
    monkeypatch.setattr(plan, "WHOLE_FILE", 2**20)
    before = fingerprint(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(place, 2 if place < 0 else 0)
        file.write(b"\xaa")
    assert fingerprint(folder) != before


def test_of_a_large_file_two_mebibytes_are_read(folder, monkeypatch):
    monkeypatch.setattr(plan, "WHOLE_FILE", 2**20)
    # 100 GB of nothing, which takes no room: read whole, this test would not end.
    os.truncate(folder / "model.safetensors", 100 * 2**30)
    assert fingerprint(folder).startswith("folder:")


def test_every_model_and_revision_meets_every_kind(monkeypatch):
    monkeypatch.setattr(plan, "content_of", lambda model, revision, refs: f"{model} {revision}")
    made = make_plan(["a", "b@x", "demo", "a"], revisions=["m", "n"], what=["icl", "scan"])
    assert [(job.model, job.revision, job.what) for job in made.jobs] == [
        (model, revision, what)
        for model, revision in (("a", "m"), ("a", "n"), ("b", "x"), ("demo", None))
        for what in ("scan", "icl")
    ]
    assert [len(group) for group in made.groups()] == [2, 2, 2, 2]


def test_a_folder_may_have_an_at_in_its_name(tmp_path):
    (tmp_path / "run@3").mkdir()
    (job,) = make_plan([str(tmp_path / "run@3")], revisions=["main"]).jobs
    assert (job.model, job.revision) == (str(tmp_path / "run@3"), None)


def test_a_name_too_long_for_a_folder_is_no_folder():
    made = make_plan(["x" * 300])
    assert "the hub has no such id" in str(made.refused[0].error)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"models": []}, "at least one model"),
        ({"models": "gpt2"}, r"models='gpt2'; it needs a list, like \['gpt2'\]"),
        ({"revisions": "main"}, "revisions='main'; it needs a list"),
        ({"what": "scan"}, "what='scan'; it needs a list"),
        ({"models": ["a@"]}, "write MODEL or MODEL@REVISION"),
        ({"what": ["scam"]}, "'scam' is not known; use scan, verify, circuit, icl"),
        ({"what": []}, "is not known"),
        ({"settings": {"scan": {"n_prompt": 1}}}, "scan has no setting 'n_prompt'; it has n_prompts"),
        ({"settings": {"scan": {"n_prompts": "many"}}}, "scan.n_prompts='many'; it needs to be a whole number"),
        ({"settings": {"scan": {"n_prompts": True}}}, "whole number"),
        ({"settings": {"scam": {}}}, "'scam' is not known"),
        ({"dtype": "float8"}, "dtype='float8' is not known"),
    ],
)
def test_what_cannot_be_planned_is_said_in_one_line(given, why):
    with pytest.raises(ArgumentError, match=why) as caught:
        make_plan(**({"models": ["demo"]} | given))
    assert "\n" not in str(caught.value)


def test_a_list_of_models(tmp_path):
    file = tmp_path / "models.txt"
    file.write_text("# the small ones\ngpt2\n\n  EleutherAI/pythia-70m@step1  # early\n./run#3\n")
    assert read_wanted(file).models == ("gpt2", "EleutherAI/pythia-70m@step1", "./run#3")


def test_a_toml_plan(tmp_path):
    file = tmp_path / "plan.toml"
    file.write_text(
        'models = ["gpt2", { id = "p", revisions = ["a", "b"] }]\nwhat = ["scan", "icl"]\n[scan]\nperiod = 20\n'
    )
    found = read_wanted(file)
    assert (found.models, found.what, found.settings) == (
        ("gpt2", "p@a", "p@b"),
        ("scan", "icl"),
        {"scan": {"period": 20}},
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("modles = []", "unknown modles"),
        ("models = 3", "is not a plan; write models ="),
        ('models = "gpt2"', "is not a plan; write models ="),
        ('models = [{ id = "gpt2", revisions = "main" }]', "is not a plan; write models ="),
        ('what = "scan"', "is not a plan; write models ="),
        ('models = [{ ids = "x" }]', "is not a plan"),
        ("scan = 3", "is not a plan"),
        ("models = [", "cannot be read as a list of models"),
    ],
)
def test_a_damaged_plan_is_told_in_one_line(tmp_path, text, why):
    file = tmp_path / "plan.toml"
    file.write_text(text)
    with pytest.raises(ArgumentError, match=why) as caught:
        read_wanted(file)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ArgumentError, match="No such file"):
        read_wanted(tmp_path / "none.txt")


class Hub:
    """Answers like the hub: one model with two revisions."""

    asked: list[str]

    def __init__(self) -> None:
        pass

    def list_repo_refs(self, model: str) -> Any:
        self.asked.append(f"refs of {model}")
        return SimpleNamespace(
            branches=[SimpleNamespace(name="main", target_commit="1" * 40)],
            tags=[SimpleNamespace(name="step1", target_commit="2" * 40)],
        )

    def model_info(self, model: str, *, revision: str) -> Any:
        self.asked.append(f"{model} at {revision}")
        response = httpx.Response(404, request=httpx.Request("GET", "https://example.org"))
        raise RevisionNotFoundError("Revision Not Found", response=response)


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "asked", [], raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    return Hub


def test_branches_and_tags_of_a_model_take_one_question_and_commits_none(hub):
    made = make_plan(["m@main", "m@step1", "m", "m@" + "3" * 40])
    assert [job.content for job in made.jobs] == ["1" * 40, "2" * 40, "3" * 40]
    assert [job.commit for job in made.jobs] == [job.content for job in made.jobs]
    assert hub.asked == ["refs of m"]


def test_a_missing_revision_is_refused_with_those_there_are(hub):
    made = make_plan(["m@step2", "m"], what=["scan", "icl"])
    assert [job.what for job in made.jobs] == ["scan", "icl"]
    assert [one.job.revision for one in made.refused] == ["step2", "step2"]
    error = str(made.refused[0].error)
    assert "'m' has no revision 'step2'; it has 2 branches and tags (step1, main)" in error


def test_without_the_hub_the_cache_is_asked(tmp_path, monkeypatch):
    cached = tmp_path / "snapshots" / ("4" * 40) / "config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(cached))
    assert content_of("org/m", None) == "4" * 40  # HF_HUB_OFFLINE is set
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(ModelNotFound, match="the hub could not be reached, and its local cache does not hold it"):
        content_of("org/m", None)
