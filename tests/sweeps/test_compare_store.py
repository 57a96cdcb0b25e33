"""A store of a sweep, compared: each model's scores are those that were kept."""

from __future__ import annotations

import json

import pytest
from pytest import approx
from typer.testing import CliRunner

import headscope as hs
from headscope.cli.main import app

SETTINGS = {"scan": {"n_prompts": 4, "period": 8}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from benchmarks.tiny import tiny_causal_lm

    place = tmp_path_factory.mktemp("swept")
    folders = [place / f"llama-{seed}" for seed in range(3)]
    for seed, folder in enumerate(folders):
        tiny_causal_lm("llama", seed=seed).save_pretrained(folder)
    hs.sweep(folders, place / "store", settings=SETTINGS)
    return place / "store"


def test_a_store_gives_a_comparison_of_its_scans(store):
    found = hs.open_store(store).compare()
    assert [side.label for side in found.sides] == ["A", "B", "C"]
    assert len(found.pairs) == 2
    assert len(found.nearest) == 3
    frame = hs.open_store(store).to_frame("scan")
    for side in found.sides:
        own = frame[frame["model"] == side.model.id]
        kept = {(row.layer, row.head, row.detector): row.mean for row in own.itertuples()}
        said = {(one.head.layer, one.head.head, role): x for one in side.heads for role, x in one.scores.items()}
        assert said == approx(kept)
    assert hs.Comparison.from_dict(json.loads(found.to_json())) == found


def test_the_command_compares_a_store(store):
    shown = CliRunner().invoke(app, ["compare", str(store)])
    assert shown.exit_code == 0, shown.output
    assert "Most alike:" in shown.output
    assert "were kept" in shown.output
    assert "by scores" in shown.output
    for asked in (["--verify"], ["--n-prompts", "0"], ["--dtype", "bfloat16"], ["--seed", "7"]):
        refused = CliRunner().invoke(app, ["compare", str(store), *asked])
        assert f"{asked[0]} needs the models" in str(refused.exception) + refused.output
