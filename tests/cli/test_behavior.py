"""`headscope behavior`: its document is the API's, its table says what was found, bad input is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import headscope as hs
from headscope.evidence.behavior.files import save_contrast
from headscope.evidence.behavior.sets import wrong_facts
from headscope.planted.deferring import AblatedHeads

MODELS = Path(__file__).parents[1] / "behaviors" / "models"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Works of the planted language, with one line that is no pair."""
    path = save_contrast(AblatedHeads.of(0).praise(), tmp_path_factory.mktemp("pairs") / "praise.jsonl")
    path.write_text(path.read_text() + '{"prompt": "x"}\n')
    return path


def comparable(document):
    """Without what differs from run to run: seconds, and the command."""
    document = json.loads(json.dumps(document))
    del document["cost"]["wall_s"], document["provenance"]["command"]
    return document


def test_json_equals_the_api_and_what_is_saved(headscope, pairs, tmp_path):
    arguments = ("behavior", pairs, MODELS / "deferring", "--dtype", "float32", "--seed", 2, "--top", 4)
    ran = headscope(*arguments, "--json", "--out", tmp_path / "new")
    assert (ran.code, ran.err) == (0, "")
    printed = json.loads(ran.out)
    assert printed["schema"] == "headscope.behavior/1"
    assert {"behavior", "score", "heads", "controls", "conclusion"} <= set(printed)
    model = hs.load(MODELS / "deferring", dtype="float32")
    assert comparable(printed) == comparable(hs.behavior(str(pairs), model, seed=2, top=4).to_dict())
    assert ran.out == (tmp_path / "new" / "behavior.json").read_text()
    assert (tmp_path / "new" / "behavior.parquet").exists()
    assert len(printed["heads"]) == 4


def test_the_table_shows_scores_heads_controls_and_the_conclusion(headscope, pairs, tmp_path):
    out = tmp_path / "saved"
    ran = headscope("behavior", pairs, MODELS / "deferring", "--dtype", "float32", "--out", out)
    assert (ran.code, ran.err) == (0, "")
    found = hs.BehaviorResult.load(out)
    assert found.conclusion == "localised"
    lines = ran.out.splitlines()
    assert "localised" in lines
    for reason in found.reasons:
        assert f"  {reason}" in lines
    assert f"{found.cost.forwards:,} prompts read" in ran.out
    assert f"takes {found.cost.exhaustive:,}" in ran.out
    for one in found.heads:
        row = next(line for line in lines if line.startswith(f"{one.head}{'*' if one.named else ' '}"))
        assert f"{one.removed.mean:+.2f}" in row
        assert f"{one.patched.mean:+.2f}" in row
    assert "1 lines of the file left out: line 65: it has no answer, no other" in ran.out
    for kind in ("random", "same layers", "same size"):
        n_sets = sum(draw.kind == kind for draw in found.controls.draws)
        assert f"control, {n_sets} sets, {kind}" in ran.out
    assert f"Results: {out / 'behavior.json'}" in ran.out


def test_a_model_without_the_behaviour_succeeds_and_says_so(headscope, pairs):
    ran = headscope("behavior", pairs, MODELS / "honest", "--dtype", "float32")
    assert (ran.code, ran.err) == (0, "")
    assert "\nno praise measured\n" in ran.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("flattery",), "there is no behaviour or file 'flattery'"),
        (("sycophancy", MODELS / "honest"), "can read 1 of the 351 pairs"),
    ],
)
def test_what_has_to_be_changed_is_one_line(headscope, arguments, says):
    ran = headscope("behavior", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.count("\n") == 1


def test_sycophancy_in_the_demo_is_copying():
    # Half of its training was random tokens that repeat: it knows no facts and repeats what it is told.
    facts = wrong_facts()
    found = hs.behavior(replace(facts, pairs=facts.pairs[::11]), "demo")
    assert found.conclusion == "copying (induction heads)"
    assert set(found.named) <= set(found.controls.induction.heads)
    assert found.score.neutral_accuracy.mean == pytest.approx(0.5, abs=0.15)
    assert found.paraphrase.flips.mean < 0.1 < found.verbatim.flips.mean


def test_help_shows_an_example(headscope):
    ran = headscope("behavior", "--help")
    assert ran.code == 0
    assert "headscope behavior sycophancy demo --out results/demo" in ran.out
