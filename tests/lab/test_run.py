"""A run: goes on exactly after a kill at any moment, loses no checkpoint, and stops with one clear line."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
from dataclasses import replace

import pytest
import torch
from pytest import approx
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headscope.errors import ArgumentError, HeadscopeError, NonFiniteError
from headscope.heads import HeadId
from headscope.records.codec import encode
from headscope.training import recipes
from headscope.training.config import build_model, train_config
from headscope.training.loop import Recipe
from headscope.training.recipes import RECIPES, Phase, Preset, Until
from headscope.training.run import Figures, Row, Strongest, held_from, is_done, run
from tests import forked

BATCH = {"n_prompts": 4, "n_tokens": 20, "period": (3, 6), "gap": (0, 2)}
TINY = Preset(
    about="two phases of a few steps",
    vocab_size=32,
    heads=2,
    d_model=16,
    phases=(
        Phase(recipe=Recipe(n_steps=5, learning_rate=1e-2, warmup_steps=2), batches={"repeats": (BATCH,)}),
        Phase(
            recipe=Recipe(n_steps=7, learning_rate=5e-3, decay_steps=4, warmup_steps=0),
            batches={
                "repeats": (BATCH, {**BATCH, "n_tokens": 30}),
                "chains": ({"n_prompts": 3, "n_tokens": 12, "n_states": 4},),
            },
        ),
    ),
    measure_every=3,
)


@pytest.fixture
def tiny(monkeypatch):
    """A configuration of the recipe above."""
    monkeypatch.setitem(recipes.RECIPES, "tiny", TINY)
    return train_config(recipe="tiny", checkpoint_every=4, device="cpu")


def look(model, tokenizer):
    """Figures made from the weights, so that they differ from step to step."""

    def measure(model, step):
        score = float(model.lm_head.weight.detach().std())
        head = Strongest(head=HeadId(1, 0), score=score)
        return Figures(induction=head, previous_token=head, first_copy_loss_nats=None, second_copy_loss_nats=score)

    return measure


def weights(path):
    return (path / "model.safetensors").read_bytes()


def test_a_run_leaves_a_log_checkpoints_and_one_state(tiny, tmp_path):
    steps, rows = [], []
    model, curve, checkpoints = run(
        tiny, tmp_path / "run", measure=look, on_row=rows.append, on_step=lambda step, losses: steps.append(step)
    )
    assert steps == list(range(1, 13))
    # Every 3 steps a look, every 4 a checkpoint, and a look at each checkpoint.
    assert [row.step for row in curve] == [0, 3, 4, 6, 8, 9, 12]
    assert list(curve) == rows
    assert [set(row.loss_nats) for row in curve] == [set()] + [{"repeats"}] * 2 + [{"repeats", "chains"}] * 4
    assert [path.name for path in checkpoints] == ["step-000000", "step-000004", "step-000008", "step-000012"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "log.jsonl",
        "state.safetensors",
        *(path.name for path in checkpoints),
        "train.json",
    ]
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert logged == [encode(row) for row in curve]
    saved = load_file(checkpoints[-1] / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())
    assert not model.training


def test_a_logged_loss_is_the_mean_since_the_row_before(tiny, tmp_path):
    # The losses logged at step 6 are means over steps 5 and 6, on either side of the seam: two batches of repeats, and
    # one of chains, which the first phase has not.
    losses = {}
    _, curve, _ = run(tiny, tmp_path / "run", measure=look, on_step=lambda step, loss: losses.update({step: loss}))
    row = next(row for row in curve if row.step == 6)
    assert row.loss_nats["repeats"] == approx((losses[5]["repeats"] + losses[6]["repeats"]) / 2)
    assert row.loss_nats["chains"] == losses[6]["chains"]


TOUCHING = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.chmod"}


def in_a_child(config, folder, *, die_after=None, die_at_step=None):
    """Train in a child, which kills itself before the file operation, or after the step, of that number."""
    pid = os.fork()
    if pid == 0:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if event in TOUCHING and str(folder) in str(arguments[0]):
                seen += 1
                if seen == die_after:
                    os.kill(os.getpid(), signal.SIGKILL)

        def on_step(step, losses):
            if step == die_at_step:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            run(config, folder, measure=look, on_step=on_step)
        finally:
            (folder.parent / f"{folder.name}.events").write_text(str(seen))
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at_any_moment(root):
    torch.set_num_threads(1)
    RECIPES["tiny"] = TINY
    config = train_config(recipe="tiny", checkpoint_every=4, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        build_model(config).save_pretrained(scratch)  # transformers prepares itself at the first, here for all children
    assert in_a_child(config, root / "whole") == 0
    events = int((root / "whole.events").read_text())
    draw = random.Random(0)
    for n in draw.sample(range(1, events + 1), 12):
        assert in_a_child(config, root / f"event-{n}", die_after=n) == -signal.SIGKILL
        # Killed again while it cleans up and goes on.
        in_a_child(config, root / f"event-{n}", die_after=draw.randrange(1, 12))
        assert in_a_child(config, root / f"event-{n}") == 0
    for n in draw.sample(range(1, 13), 4):
        assert in_a_child(config, root / f"step-{n}", die_at_step=n) == -signal.SIGKILL
        assert in_a_child(config, root / f"step-{n}") == 0
    print(events)


def test_a_run_killed_at_any_moment_goes_on_to_the_same_weights(tmp_path):
    process = forked.Forked(killed_at_any_moment, tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert int(out) > 60, "the files that a run touches go through calls that the hook does not see"
    whole = tmp_path / "whole"
    log = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    killed = [path for path in tmp_path.iterdir() if path.is_dir() and path != whole]
    assert len(killed) == 16
    for folder in killed:
        assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in whole.iterdir()), folder
        for checkpoint in whole.glob("step-*"):
            assert weights(folder / checkpoint.name) == weights(checkpoint), folder
        again = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for row in (*log, *again):
            row.pop("wall_s", None)
        assert again == log, folder


def test_a_run_that_is_done_is_found_so(tiny, tmp_path):
    run(tiny, tmp_path, measure=look)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("step-*/*")}
    steps = []
    model, curve, checkpoints = run(tiny, tmp_path, measure=look, on_step=lambda step, losses: steps.append(step))
    assert steps == []
    assert [row.step for row in curve] == [0, 3, 4, 6, 8, 9, 12]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("step-*/*")} == before
    saved = load_file(checkpoints[-1] / "model.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_fewer_steps_are_the_beginning_of_more(tiny, tmp_path):
    run(tiny, tmp_path / "whole", measure=look)
    run(replace(tiny, steps=8), tmp_path / "part", measure=look)
    assert weights(tmp_path / "part" / "step-000008") == weights(tmp_path / "whole" / "step-000008")
    assert not (tmp_path / "part" / "step-000012").exists()


def test_more_steps_lengthen_the_last_phase(tiny, tmp_path):
    _, curve, _ = run(replace(tiny, steps=15), tmp_path, measure=look)
    assert curve[-1].step == 15


def test_another_configuration_is_refused_with_what_differs(tiny, tmp_path):
    run(replace(tiny, steps=1), tmp_path, measure=look)
    with pytest.raises(
        ArgumentError, match=r"holds a run with seed 0, not 1; steps 1, not 12\. Give the same settings"
    ):
        run(replace(tiny, seed=1), tmp_path, measure=look)


def test_a_folder_with_other_files_is_refused_and_left_alone(tiny, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArgumentError, match="holds no run of headscope train"):
        run(tiny, tmp_path, measure=look)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ArgumentError, match="holds no run of headscope train"):
        run(tiny, tmp_path / "thesis.tex", measure=look)


def test_going_on_leaves_the_users_own_files_alone(tiny, tmp_path):
    run(replace(tiny, steps=1), tmp_path, measure=look)
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes.md").write_text("my notes")
    (tmp_path / ".step-abc123").mkdir()
    run(replace(tiny, steps=1), tmp_path, measure=look)
    assert (tmp_path / ".git").is_dir()
    assert (tmp_path / "notes.md").exists()
    assert not (tmp_path / ".step-abc123").exists()


def test_a_damaged_state_and_a_missing_checkpoint_are_named(tiny, tmp_path):
    run(tiny, tmp_path, measure=look)
    (tmp_path / "step-000012").rename(tmp_path / "kept")
    with pytest.raises(ArgumentError, match=r"goes on from step-000012, which is missing"):
        run(tiny, tmp_path, measure=look)
    (tmp_path / "kept").rename(tmp_path / "step-000012")
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ArgumentError, match=r"state\.safetensors' is damaged .* remove state\.safetensors to"):
        run(tiny, tmp_path, measure=look)


def test_a_damaged_log_and_damaged_weights_are_named_in_one_line(tiny, tmp_path):
    run(tiny, tmp_path, measure=look)
    log = (tmp_path / "log.jsonl").read_bytes()
    first = [
        b"garbage",
        b"\xff",
        b"[0]",
        b'{"at": 0}',
        b'{"step": 0}',
    ]  # not JSON, not UTF-8, no row, no step, no rest
    short = b"".join(log.splitlines(keepends=True)[:-1])  # without step 12, which the state goes on from
    damaged = {
        "log.jsonl": [*(line + b"\n" + log for line in first), short, None],
        "step-000012/model.safetensors": [b"\x08", b"", None],
    }
    for name, contents in damaged.items():
        path = tmp_path / name
        whole = path.read_bytes()
        for content in contents:
            path.unlink() if content is None else path.write_bytes(content)
            with pytest.raises(ArgumentError, match=rf"{name}' is damaged \(.*\); put it back, or") as told:
                run(tiny, tmp_path, measure=look)
            assert "\n" not in str(told.value)
            assert "write it again" not in str(told.value)
            path.write_bytes(whole)
    assert len(run(tiny, tmp_path, measure=look)[1]) == 7, "put back, it is as before"


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("name", ["step-000012/model.safetensors", "state.safetensors", "log.jsonl"])
def test_a_single_bit_that_flipped_is_told_before_a_run_goes_on(tiny, tmp_path, name):
    run(tiny, tmp_path, measure=look)
    path = tmp_path / name
    whole = path.read_bytes()
    draw = random.Random(0)
    for bit in [8 * len(whole) - 1, *(draw.randrange(8 * len(whole)) for _ in range(40))]:
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(ArgumentError, match=rf"{name}' is damaged \(.*\); put it back, or") as told:
            run(tiny, tmp_path, measure=look)
        assert "\n" not in str(told.value)
        # A log cut off or written again by the refused run would hide the damage from the next one.
        assert path.read_bytes() == flipped(whole, bit)
    path.write_bytes(whole)
    assert len(run(tiny, tmp_path, measure=look)[1]) == 7


@pytest.mark.parametrize("name", ["state.safetensors", "log.jsonl", "step-000012/model.safetensors"])
def test_a_pipe_in_place_of_a_file_is_told_and_not_waited_for(tiny, tmp_path, name):
    run(tiny, tmp_path, measure=look)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(ArgumentError, match=r"is damaged \(it is not a regular file\)"):
        run(tiny, tmp_path, measure=look)


def test_a_state_of_before_has_no_checksums_and_goes_on(tiny, tmp_path):
    whole = run(tiny, tmp_path / "whole", measure=look)
    state = tmp_path / "whole" / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        about = {name: file.metadata()[name] for name in ("step", "wall_s")}
    save_file(load_file(state), state, metadata=about)
    assert len(run(tiny, tmp_path / "whole", measure=look)[1]) == len(whole[1])


def test_a_full_disk_loses_no_checkpoint_and_the_run_goes_on_afterwards(tiny, tmp_path):
    # The system itself refuses to let any file grow past 1 kB from step 6 on, and a checkpoint holds more.
    run(tiny, tmp_path / "whole", measure=look)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, losses):
        if step == 6:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    folder = tmp_path / "run"
    try:
        with pytest.raises(HeadscopeError) as told:
            run(tiny, folder, measure=look, on_step=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(told.value)
    assert "File too large" in str(told.value)
    assert "the newest checkpoint is" in str(told.value)
    assert "step-000004" in str(told.value)
    assert weights(folder / "step-000004") == weights(tmp_path / "whole" / "step-000004")
    _, curve, _ = run(tiny, folder, measure=look)
    assert [row.step for row in curve] == [0, 3, 4, 6, 8, 9, 12]
    assert weights(folder / "step-000012") == weights(tmp_path / "whole" / "step-000012")


def test_no_space_is_told_in_one_line(tiny, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("headscope.training.checkpoints.write_whole", full)
    with pytest.raises(HeadscopeError, match="cannot be written: No space left on device; there is no checkpoint yet"):
        run(tiny, tmp_path / "run", measure=look)


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_last_good_checkpoint(tiny, tmp_path, monkeypatch):
    # From the 7th batch of repeats on, the embedding that they read is NaN.
    models = []

    def spoil(step, losses):
        if step == 6:
            models[0].get_input_embeddings().weight.data.fill_(math.nan)

    def look_and_keep(model, tokenizer):
        models.append(model)
        return look(model, tokenizer)

    # Step 6 also looks at the model, which finds it first; a look every 100 steps leaves it to the loss of step 7.
    for every, said in (
        (3, "after step 6 the weights are no longer finite"),
        (100, "at step 7 the repeats loss is nan"),
    ):
        monkeypatch.setitem(recipes.RECIPES, "tiny", replace(TINY, measure_every=every))
        models.clear()
        folder = tmp_path / f"every-{every}"
        with pytest.raises(NonFiniteError, match=said) as told:
            run(tiny, folder, measure=look_and_keep, on_step=spoil)
        assert str(told.value).count("\n") == 0
        assert f"the last good checkpoint is {folder / 'step-000004'}" in str(told.value)
        assert not (folder / "step-000008").exists()
        kept = load_file(folder / "step-000004" / "model.safetensors")
        assert all(torch.isfinite(value).all() for value in kept.values())


def test_a_batch_that_cannot_be_is_refused_before_the_first_step(tiny, tmp_path, monkeypatch):
    looked = []
    for change, said in (
        ({"period": (12, 14)}, "n_tokens=20 must be at least 25"),
        ({"n_tokens": 40}, "vocab_size=32 must be at least n_tokens=40"),
    ):
        phase = Phase(recipe=Recipe(n_steps=5, learning_rate=1e-2), batches={"repeats": ({**BATCH, **change},)})
        monkeypatch.setitem(recipes.RECIPES, "tiny", replace(TINY, phases=(TINY.phases[0], phase)))
        with pytest.raises(ArgumentError, match=said):
            run(tiny, tmp_path / "run", measure=look, on_row=looked.append)
    assert looked == []


def row(step, stripe, loss):
    head = Strongest(head=HeadId(1, 0), score=stripe)
    figures = Figures(induction=head, previous_token=head, first_copy_loss_nats=None, second_copy_loss_nats=loss)
    return Row(step=step, loss_nats={}, figures=figures, wall_s=0.0)


def test_training_is_done_when_both_figures_have_held_for_long_enough():
    until = Until(stripe=0.7, second_copy_loss_nats=0.2, steps=50)
    rows = [row(0, 0.0, 5.0), row(25, 0.7, 0.2), row(50, 0.6, 0.1), row(75, 0.8, 0.1), row(100, 0.9, 0.1)]
    # At 25 they hold on the nose, at 50 the stripe does not, so they hold from 75 on.
    assert [held_from(rows[:n], until) for n in range(1, 6)] == [None, 25, None, 75, 75]
    assert not is_done(rows, until, steps=1000)
    rows.append(row(125, 0.9, 0.1))
    assert is_done(rows, until, steps=1000)
    assert not is_done(rows, None, steps=1000)
    assert is_done(rows, None, steps=125)
    assert RECIPES["copy"].until == until
