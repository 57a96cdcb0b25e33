"""`headscope train`: its document is the API's, it goes on where it stopped, and its live view tells the truth."""

from __future__ import annotations

import io
import json
import os
import signal
import time

import pytest
from rich.console import Console

import headscope as hs
from headscope.cli.live import WIDTH, Screen, spark
from headscope.heads import HeadId
from headscope.training.config import train_config
from headscope.training.run import Figures, Row, Strongest
from headscope.training.watch import Trained, train
from tests import forked

SMALL = ("--heads", "2", "--d-model", "16", "--steps", "10", "--checkpoint-every", "5", "--device", "cpu")


def test_json_equals_the_api(headscope, tmp_path):
    ran = headscope("train", *SMALL, "--seed", 3, "--out", tmp_path / "run", "--json")
    assert ran.code == 0
    printed = json.loads(ran.out)
    result = train(
        "copy", heads=2, d_model=16, steps=10, checkpoint_every=5, seed=3, device="cpu", out=tmp_path / "again"
    ).to_dict()
    for document in (printed, result):
        del document["provenance"], document["out"], document["final"]
        for row in document["curve"]:
            del row["wall_s"]
    assert printed == result


def test_it_says_what_was_learned_and_where_the_checkpoints_are(headscope, tmp_path):
    ran = headscope("train", *SMALL, "--out", tmp_path / "run")
    assert ran.code == 0
    assert ran.out.startswith("No head attends like an induction head after 10 steps: the best is L")
    assert f"Checkpoints: 3 in {tmp_path / 'run'}, the last is step-000010" in ran.out
    assert hs.load(tmp_path / "run" / "step-000010").n_layers == 2
    # Off a terminal, each look at the model is a line on stderr: before the first step, and at 5 and 10.
    lines = ran.err.splitlines()
    assert lines[0] == "copy: 2 layers of 2 heads, width 16, rotary positions, seed 0, cpu"
    assert [line.split()[:2] for line in lines[1:]] == [["step", "0"], ["step", "5"], ["step", "10"]]


def test_without_a_folder_the_run_lies_under_runs(headscope, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert headscope("train", *SMALL, "--layers", 1, "--seed", 2).code == 0
    assert (tmp_path / "runs" / "copy-1-layer-seed-2" / "step-000010" / "model.safetensors").exists()


def test_a_file_gives_settings_and_the_command_line_wins(headscope, tmp_path):
    (tmp_path / "run.toml").write_text(
        f'recipe = "bigram"\nheads = 2\nd-model = 16\nsteps = 3\nseed = 5\ndevice = "cpu"\nout = "{tmp_path}/run"\n'
    )
    ran = headscope("train", "--config", tmp_path / "run.toml", "--seed", 6, "--json")
    found = Trained.from_dict(json.loads(ran.out))
    assert (found.config.recipe, found.config.steps, found.config.seed) == ("bigram", 3, 6)
    assert found.out == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "toml", "said"),
    [
        (("--recipe", "none"), None, "recipe='none' is not known"),
        (("--d-model", "65"), None, "d_model=65 does not divide among heads=4"),
        (("--d-model", "60"), None, "odd width 15"),
        (("--dtype", "bfloat16", "--device", "cpu"), None, "needs device='cuda'"),
        ((), "widht = 4", "'widht' of '"),
        ((), "out = 4", "must be the name of a folder"),
        ((), 'layers = "2"', "layers='2' must be a whole number"),
        (("--config", "none.toml"), None, "cannot be read as TOML"),
    ],
)
def test_what_cannot_be_trained_exits_with_2_and_leaves_no_folder(headscope, tmp_path, arguments, toml, said):
    if toml is not None:
        (tmp_path / "run.toml").write_text(toml)
        arguments = (*arguments, "--config", tmp_path / "run.toml")
    ran = headscope("train", *arguments, *([] if toml and "out" in toml else ["--out", tmp_path / "run"]))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert said in ran.err
    assert not (tmp_path / "run").exists()


def test_another_runs_folder_is_refused(headscope, tmp_path):
    assert headscope("train", *SMALL, "--out", tmp_path / "run").code == 0
    ran = headscope("train", *SMALL, "--out", tmp_path / "run", "--seed", 1)
    assert ran.code == 2
    assert "holds a run with seed 0, not 1" in ran.err.splitlines()[-1]


def interrupted(*arguments):
    """The command line, with Ctrl-C when the first checkpoint is about to get its name."""
    real = os.replace

    def replace(source, target):
        if str(target).endswith("step-000000"):
            os.kill(os.getpid(), signal.SIGINT)
        real(source, target)

    os.replace = replace
    forked.main(*arguments)


def test_an_interrupted_run_says_how_to_go_on_and_leaves_a_whole_checkpoint(tmp_path):
    run = tmp_path / "run"
    process = forked.Forked(interrupted, "train", *map(str, SMALL), "--out", str(run))
    _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1] == (
        f"headscope: stopped by Ctrl-C; the same command goes on from the newest checkpoint in {run}, if there is one."
    )
    assert sorted(path.name for path in run.iterdir()) == [
        "log.jsonl",
        "state.safetensors",
        "step-000000",
        "train.json",
    ]


def row(step, stripe, loss, wall_s=0.0):
    figures = Figures(
        induction=Strongest(head=HeadId(1, 2), score=stripe),
        previous_token=Strongest(head=HeadId(0, 3), score=stripe / 2),
        first_copy_loss_nats=6.0,
        second_copy_loss_nats=loss,
    )
    return Row(step=step, loss_nats={"repeats": loss}, figures=figures, wall_s=wall_s)


def drawn(screen):
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    console.print(screen)
    return console.file.getvalue()


def test_the_view_shows_heads_losses_and_what_is_left(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with Screen(train_config(recipe="copy", device="cpu"), console=console) as screen:
        screen.row(row(0, 0.02, 6.0))
        assert screen.left_s() is None
        for step in range(1, 101):
            # Half a second a step, and then a tenth: the last 40 steps tell the pace.
            now += 0.5 if step <= 50 else 0.1
            screen.step(step, {"repeats": 5.5})
        assert screen.left_s() == pytest.approx(700 * 0.1)
        screen.row(row(100, 0.75, 0.31))
        picture = drawn(screen)
        lines = [line.split() for line in picture.splitlines() if line.strip()]
        assert lines[0] == "copy: 2 layers of 4 heads, width 64, rotary positions, seed 0, cpu".split()
        assert "step 100 of 800  at most 70 s left" in picture
        assert lines[2] == ["induction", "L1H2", "0.75", "▁▆"]
        assert lines[3] == ["previous", "token", "L0H3", "0.38", "▁▃"]
        assert lines[4] == ["second", "copy", "0.31", "nats", "▇▁"]
        assert lines[5] == ["loss", "on", "repeats", "5.50", "nats"]
        # Both figures hold from step 125, and have held for 50 steps at 175.
        for step in (125, 150, 175):
            screen.row(row(step, 0.9, 0.1, wall_s=12.0))
            assert ("took" in drawn(screen)) == (step == 175)
        assert "175 steps  took 12 s" in drawn(screen)


def test_the_view_fits_a_terminal_of_80_columns():
    with Screen(train_config(recipe="mixed", device="cpu"), console=Console(file=io.StringIO())) as screen:
        assert "reading the source" in drawn(screen)
        for step in range(0, 1750, 50):
            screen.row(row(step, step / 2000, 5.0))
        screen.step(1749, {"text": 3.2, "repeats": 2.1})
        # A wrapped line would make more than these: title, bar, three figures, two losses.
        assert len([line for line in drawn(screen).splitlines() if line.strip()]) == 7


def test_a_spark_is_as_high_as_its_values():
    # Seven blocks: 0 to 1/7 is the lowest, 6/7 and more the highest.
    assert spark([0.0, 0.15, 0.5, 0.86, 1.0], 1.0) == "▁▂▄▇▇"
    assert spark([0.0] * WIDTH + [1.0] * WIDTH, 1.0) == "▁" * (WIDTH // 2) + "▇" * (WIDTH // 2)
    assert spark([], 1.0) == ""
