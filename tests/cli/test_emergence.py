"""`headscope emergence` on tiny random checkpoints, in which nothing emerges."""

from __future__ import annotations

import json

import huggingface_hub
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 8, "vocab_size": 80, "n_positions": 96}
    for step in range(0, 60, 10):
        torch.manual_seed(step)
        GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).save_pretrained(folder / f"step{step}")
    return folder


def test_prints_a_row_for_each_checkpoint_and_why_there_is_no_change(headscope, run, tmp_path):
    ran = headscope("emergence", run, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    for step in range(0, 60, 10):
        assert any(line.split()[:1] == [str(step)] for line in ran.out.splitlines())
    assert "induction: no phase change found: it stays between 0.0" in ran.out
    assert "in_context has no number: " in ran.out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["checkpoints", "emergence.json", "emergence.parquet", "emergence.svg"]
    # A second run reads what is there, and its JSON is the document that the API gives.
    ran = headscope("emergence", run, "--out", tmp_path / "out", "--json")
    assert ran.err == ""
    assert hs.Emergence.from_dict(json.loads(ran.out)) == hs.Emergence.load(tmp_path / "out")
    assert json.loads(ran.out)["points"] == hs.emergence(run, keep=tmp_path / "out/checkpoints").to_dict()["points"]


def test_options_reach_the_measurement(headscope, run):
    arguments = ["--every", 20, "--revision", "step?0", "--n-prompts", 2, "--period", 8, "--seed", 3, "--json"]
    document = json.loads(headscope("emergence", run, *arguments).out)
    assert [point["name"] for point in document["points"]] == ["step20", "step40"]
    assert document["settings"] == {"n_prompts": 2, "period": 8, "seed": 3, "dtype": "auto"}
    assert document["points"][0]["snapshot"]["probe"]["period"] == 8


def test_what_cannot_be_followed_is_one_line(headscope, run, tmp_path):
    for arguments, told in (
        ([tmp_path], "has no checkpoint to follow"),
        ([tmp_path / "nowhere"], "is not a folder"),
        ([run / "step0"], "is one model"),
        ([run, "--revision", "step7"], "no checkpoint is called 'step7'"),
        ([run, "--every", 0], "every=0"),
        ([run, "--n-prompts", 0], "n_prompts=0; it needs a whole number from 1 up"),
        ([run, "--period", 90], "none of the 6 checkpoints"),
    ):
        ran = headscope("emergence", *arguments)
        assert ran.code == 2
        assert ran.out == ""
        assert told in ran.err
        assert ran.err.count("\n") == 1


def test_revisions_in_the_hubs_cache_are_followed_offline(headscope, run, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--lab--tiny"
    for number, step in enumerate(range(0, 60, 10)):
        commit = f"{number:040x}"
        (folder / "snapshots").mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / commit).symlink_to(run / f"step{step}", target_is_directory=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / f"step{step}").write_text(commit)
    ran = headscope("emergence", "lab/tiny", "--revision", "step[0-2]*", "--json")
    assert (ran.code, ran.err) == (0, "")
    document = json.loads(ran.out)
    assert [point["name"] for point in document["points"]] == ["step0", "step10", "step20"]
    assert [point["snapshot"]["model"]["revision"] for point in document["points"]] == [f"{n:040x}" for n in range(3)]
