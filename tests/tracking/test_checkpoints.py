"""Which checkpoints a source holds, in which order."""

from __future__ import annotations

import pytest

from headscope.errors import ArgumentError, ModelNotFound
from headscope.evidence.emergence.checkpoints import find_checkpoints, step_of


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "config.json").write_text("{}")
    return root


def listed(found):
    return [(one.step, one.name) for one in found.checkpoints]


def test_folders_come_by_the_number_in_their_name(tmp_path):
    folders(tmp_path, "checkpoint-500", "step-000040", "step1000", "stage1-step2000-tokens4B", "final")
    (tmp_path / "logs-3").mkdir()  # holds no config.json, so no checkpoint
    found = find_checkpoints(tmp_path)
    assert listed(found) == [
        (40, "step-000040"),
        (500, "checkpoint-500"),
        (1000, "step1000"),
        (2000, "stage1-step2000-tokens4B"),
    ]
    assert found.passed_over == {"final": "its name holds no step"}
    assert found.checkpoints[1].source == str(tmp_path / "checkpoint-500")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("step1000-tokens4B", 1000),
        ("step2-step30", 30),
        ("ckpt-7", 7),
        ("tokens4B", None),
        ("main", None),
        ("a" * 36 + "1234", None),  # a commit, whose last digits count nothing
    ],
)
def test_the_step_in_a_name(name, step):
    assert step_of(name) == step


def test_a_trainers_output_folder_is_one_of_checkpoints_though_it_holds_a_model_too(tmp_path):
    folders(tmp_path, "checkpoint-10", "checkpoint-20")
    (tmp_path / "config.json").write_text("{}")
    assert [step for step, _ in listed(find_checkpoints(tmp_path))] == [10, 20]


def test_names_patterns_and_multiples_choose(tmp_path):
    folders(tmp_path, *(f"step{step}" for step in (0, 50, 100, 150, 1000)))
    assert [step for step, _ in listed(find_checkpoints(tmp_path, every=100))] == [0, 100, 1000]
    assert [step for step, _ in listed(find_checkpoints(tmp_path, revisions="step1*"))] == [100, 150, 1000]
    assert [step for step, _ in listed(find_checkpoints(tmp_path, revisions=["step50", "step0"]))] == [0, 50]
    with pytest.raises(ArgumentError, match=r"'step7'; there are 5: step0"):
        find_checkpoints(tmp_path, revisions="step7")


def test_a_cache_folder_gives_its_revisions(hub):
    _, folder = hub
    found = find_checkpoints(folder)
    assert [one.name for one in found.checkpoints] == [f"step{step}" for step in range(0, 800, 100)]
    assert found.checkpoints[2].source == str(folder / "snapshots" / f"{2:040x}")
    assert found.checkpoints[2].mark == f"{2:040x}"


def test_a_hub_id_gives_branches_and_tags(monkeypatch):
    from huggingface_hub import GitRefInfo, GitRefs, HfApi

    def ref(name, commit):
        return GitRefInfo(name=name, ref=f"refs/heads/{name}", target_commit=commit)

    branches, tags = [ref("main", "a"), ref("step1000", "b"), ref("v2", "c")], [ref("step512", "d")]
    refs = GitRefs(branches=branches, converts=[], tags=tags)
    monkeypatch.setattr(HfApi, "list_repo_refs", lambda self, repository: refs)
    found = find_checkpoints("lab/copy").checkpoints
    assert [(one.step, one.source, one.revision, one.mark) for one in found] == [
        (512, "lab/copy", "step512", "d"),
        (1000, "lab/copy", "step1000", "b"),
    ]
    assert [one.name for one in find_checkpoints("lab/copy", revisions="v*").checkpoints] == ["v2"]


def test_a_mark_changes_with_the_files(tmp_path):
    folders(tmp_path, "step1")
    (before,) = find_checkpoints(tmp_path).checkpoints
    assert find_checkpoints(tmp_path).checkpoints == (before,)
    (tmp_path / "step1" / "model.safetensors").write_bytes(b"12")
    (after,) = find_checkpoints(tmp_path).checkpoints
    assert after.mark != before.mark


def test_what_holds_no_checkpoints_is_refused(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(ModelNotFound, match="no model 'nobody/nothing'"):
        find_checkpoints("nobody/nothing")
    with pytest.raises(ModelNotFound, match="neither a folder here nor a name"):
        find_checkpoints("no/such/name")
    with pytest.raises(ModelNotFound, match="neither a folder here nor a name"):
        find_checkpoints("x" * 300)  # longer than the name of a file can be
    with pytest.raises(ModelNotFound, match="is not a folder"):
        find_checkpoints(tmp_path / "nowhere")
    with pytest.raises(ArgumentError, match="no checkpoint to follow: of 1 folders"):
        find_checkpoints(folders(tmp_path / "void", "no"), revisions=[])
    with pytest.raises(ArgumentError, match="is one model"):
        find_checkpoints(tmp_path / "void" / "no")
    with pytest.raises(ArgumentError, match="every=0"):
        find_checkpoints(tmp_path, every=0)
    with pytest.raises(ArgumentError, match="both checkpoints of step 5"):
        find_checkpoints(folders(tmp_path / "two", "step-5", "ckpt-5"))
