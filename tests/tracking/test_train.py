"""`hs.train`: the curve is what scans of the checkpoints show, and looking changes no weight."""

from __future__ import annotations

import json

import pytest

import headscope as hs
from headscope.errors import ArgumentError
from headscope.evidence.scan.result import THRESHOLD
from headscope.heads import HeadId
from headscope.training.config import train_config
from headscope.training.run import Figures, Row, Strongest, run
from headscope.training.watch import Trained, default_folder, train

TINY = {"heads": 2, "d_model": 16, "steps": 20, "checkpoint_every": 10, "device": "cpu"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train("copy", out=tmp_path_factory.mktemp("runs") / "copy", **TINY)


def test_a_row_is_what_a_scan_of_that_checkpoint_shows(trained):
    for name, row in zip(trained.checkpoints[1:], (row for row in trained.curve if row.step in (10, 20)), strict=True):
        scan = hs.scan(f"{trained.out}/{name}", detectors=["induction", "previous_token"])
        for role in ("induction", "previous_token"):
            best, seen = scan.ranked(role)[0], getattr(row.figures, role)
            assert (seen.head, seen.score) == (best.head, best.mean)


def test_looking_at_the_model_changes_no_weight(trained, tmp_path):
    def blind(model, tokenizer):
        head = Strongest(head=HeadId(0, 0), score=0.0)
        figures = Figures(induction=head, previous_token=head, first_copy_loss_nats=None, second_copy_loss_nats=9.0)
        return lambda model, step: figures

    _, _, checkpoints = run(train_config(recipe="copy", **TINY), tmp_path, measure=blind)
    for path in checkpoints:
        seen = f"{trained.out}/{path.name}/model.safetensors"
        with open(seen, "rb") as file:
            assert file.read() == (path / "model.safetensors").read_bytes()


def test_the_document_holds_the_result_and_gives_it_back(trained):
    document = json.loads(trained.to_json())
    assert document["schema"] == Trained.schema
    assert document["config"]["recipe"] == "copy"
    assert document["final"] == document["curve"][-1]
    assert document["checkpoints"] == ["step-000000", "step-000010", "step-000020"]
    assert document["held_from"] is None
    assert document["learned"].startswith("No head attends like an induction head after 20 steps: the best is L")
    assert Trained.from_dict(document) == trained
    with pytest.raises(ArgumentError, match=r"schema 'x' is not 'headscope\.train/1'"):
        Trained.from_dict({**document, "schema": "x"})


def test_a_run_goes_on_from_a_shorter_one_of_the_same_settings_alone(trained):
    again = train("copy", out=trained.out, **TINY)
    assert again.curve == trained.curve
    with pytest.raises(ArgumentError, match="holds a run with steps 20, not 30"):
        train("copy", out=trained.out, **{**TINY, "steps": 30})


def test_an_unnamed_folder_says_what_is_in_it():
    assert default_folder(train_config(recipe="bigram", layers=1, seed=4, device="cpu")).as_posix() == (
        "runs/bigram-1-layer-seed-4"
    )


def test_what_was_learned_is_said_in_a_sentence(trained):
    def row(stripe, previous):
        figures = Figures(
            induction=Strongest(head=HeadId(1, 2), score=stripe),
            previous_token=Strongest(head=HeadId(0, 3), score=previous),
            first_copy_loss_nats=6.0,
            second_copy_loss_nats=0.034,
        )
        return Row(step=300, loss_nats={}, figures=figures, wall_s=1.0)

    def said(stripe, previous):
        from dataclasses import replace

        return replace(trained, curve=(row(stripe, previous),)).learned

    assert said(0.913, 0.95) == (
        "L1H2 attends like an induction head, 0.91; second copy 0.03 nats. L0H3 looks at the previous token, 0.95."
    )
    assert said(THRESHOLD, 0.3) == "L1H2 attends like an induction head, 0.40; second copy 0.03 nats."
    assert said(0.2, 0.95).startswith("No head attends like an induction head after 300 steps: the best is L1H2 with")
