"""The callback in real runs of transformers' Trainer, with dropout, so that a random number drawn would be seen."""

from __future__ import annotations

import logging

import pytest
import torch
from pytest import approx
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

import headscope as hs
from headscope.errors import ArgumentError, ModelError


class Rows(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        ids = torch.randint(1, 120, (24,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def small(seed=0):
    torch.manual_seed(seed)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 120, "n_positions": 96}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, resid_pdrop=0.2, attn_pdrop=0.2))


def trained(folder, *callbacks, model=None, **options):
    model = model or small()
    settings = {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2, "report_to": [], "seed": 1}
    settings |= {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "learning_rate": 1e-2}
    arguments = TrainingArguments(output_dir=str(folder), **(settings | options))
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), callbacks=list(callbacks))
    trainer.train()
    return trainer


def scores_of(trainer):
    rows = [row for row in trainer.state.log_history if "headscope/induction_max" in row]
    return {row["step"]: {key: value for key, value in row.items() if key.startswith("headscope/")} for row in rows}


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def test_scores_reach_the_history_tensorboard_and_every_reporter_before_it(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Reporter(TrainerCallback):
        """Stands where W&B's callback stands: before the user's own."""

        def __init__(self):
            self.seen = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.seen.append(dict(logs or {}))

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    reporter = Reporter()
    trainer = trained(tmp_path, reporter, hs.HeadscopeCallback(every=2), report_to=["tensorboard"])
    history = scores_of(trainer)
    assert list(history) == [2, 4, 6]
    assert set(history[2]) == {
        "headscope/induction_max",
        "headscope/previous_token_max",
        "headscope/first_copy_loss_nats",
        "headscope/second_copy_loss_nats",
    }
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    for name in history[2]:
        # The reporter puts `train/` before every name, and keeps 32 bits.
        assert [(one.step, one.value) for one in board.Scalars(f"train/{name}")] == [
            (step, approx(row[name], rel=1e-6)) for step, row in history.items()
        ]
    assert [row["headscope/induction_max"] for row in reporter.seen if "headscope/induction_max" in row] == [
        row["headscope/induction_max"] for row in history.values()
    ]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16 autocast"])
def test_scores_are_those_of_a_scan_of_the_saved_checkpoint(tmp_path, bf16):
    callback = hs.HeadscopeCallback(every=3, seed=5)
    trainer = trained(tmp_path, callback, save_strategy="steps", save_steps=3, bf16=bf16)
    assert callback.tracker is not None
    for step, row in scores_of(trainer).items():
        saved = hs.load(tmp_path / f"checkpoint-{step}")
        scan = hs.scan(saved, probe=callback.tracker.probe)
        assert row["headscope/induction_max"] == scan.ranked("induction")[0].mean
        assert row["headscope/previous_token_max"] == scan.ranked("previous_token")[0].mean
        # And the probe itself is what the saved model's own would be.
        own = hs.repeated_tokens(saved, n_prompts=8, period=24, seed=5)
        assert all((a == b).all() for a, b in zip(own.prompts, callback.tracker.probe.prompts, strict=True))
    assert list(scores_of(trainer)) == [3, 6]


def test_training_is_the_same_bit_for_bit_with_and_without(tmp_path):
    options = {"gradient_accumulation_steps": 2, "logging_steps": 1}
    without = trained(tmp_path / "a", **options)
    callback = hs.HeadscopeCallback(every=1)
    observed = trained(tmp_path / "b", callback, **options)
    before, after = weights_of(without.model), weights_of(observed.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(scores_of(observed)) == [1, 2, 3, 4, 5, 6]  # optimizer steps, not batches

    def losses(trainer):
        return [(row["step"], row["loss"]) for row in trainer.state.log_history if "loss" in row]

    assert losses(observed) == losses(without)
    # Dropout drew from the global state, so a number drawn by the callback would have changed the weights.
    other = trained(tmp_path / "c", **options, seed=2)
    assert not torch.equal(weights_of(other.model)["transformer.wte.weight"], before["transformer.wte.weight"])


def test_weights_that_become_nan_stop_nothing_and_are_told_once(tmp_path, caplog):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                with torch.no_grad():
                    model.transformer.h[0].attn.c_attn.weight.fill_(float("nan"))

    with caplog.at_level(logging.WARNING, logger="headscope"):
        trainer = trained(tmp_path, Poison(), hs.HeadscopeCallback(every=1))
    assert trainer.state.global_step == 6
    assert list(scores_of(trainer)) == [1, 2]
    (told,) = [one for one in caplog.records if one.name == "headscope"]
    assert "step 3" in told.getMessage()
    assert "NaN" in told.getMessage()


def test_only_the_main_process_measures(tmp_path):
    class Second(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            state.is_world_process_zero = False

    callback = hs.HeadscopeCallback(every=1)
    assert scores_of(trained(tmp_path, Second(), callback)) == {}
    assert callback.tracker is None


def test_a_model_that_cannot_be_measured_is_refused_before_a_step_is_spent(tmp_path):
    model = small()
    model.transformer.wte.weight.ds_id = 0  # as DeepSpeed ZeRO-3 marks what it partitions
    with pytest.raises(ModelError, match="ZeRO-3.*headscope emergence"):
        trained(tmp_path, hs.HeadscopeCallback(), model=model)


def test_bad_arguments_and_other_loops_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match="every=0"):
        hs.HeadscopeCallback(every=0)
    from transformers import TrainerControl, TrainerState

    with pytest.raises(ArgumentError, match="use Tracker"):
        hs.HeadscopeCallback().on_train_begin(None, TrainerState(), TrainerControl(), model=small())
