"""The packaged demo model is what its text says, measured again on the committed weights."""

import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from pytest import approx
from transformers import AutoModelForCausalLM, AutoTokenizer

from headscope.errors import ModelNotFound
from headscope.probes.corpus import stdlib_sources
from headscope.training import demo, demo_training
from headscope.training.demo import demo_path
from headscope.training.loop import Recipe
from headscope.training.measure import RepeatScores, repeat_scores, text_loss, unigram_entropy
from headscope.training.repeats import jittered_repeats


@cache
def model():
    return AutoModelForCausalLM.from_pretrained(demo_path()).eval()


@cache
def scores() -> RepeatScores:
    # Prefix, gap and period vary; seed and prompts are not those that training.json was measured on.
    repeats = jittered_repeats(
        n_prompts=16,
        n_tokens=200,
        vocab_size=1024,
        bos_token_id=0,
        generator=torch.Generator().manual_seed(77),
        period=(8, 80),
        gap=(0, 40),
    )
    return repeat_scores(model(), repeats)


def test_a_head_of_the_first_layer_attends_to_the_previous_token():
    assert scores().previous_token[0].max() >= 0.85


def test_a_head_of_the_second_layer_attends_as_induction_heads_do():
    assert scores().induction[1].max() >= 0.85


def test_a_head_of_the_second_layer_does_neither():
    neither = (scores().induction[1] < 0.3) & (scores().previous_token[1] < 0.3)
    assert neither.any()


def test_repeated_tokens_are_predicted():
    assert scores().accuracy > 0.95
    assert scores().loss_nats < 0.3


def test_the_scores_hold_on_the_plain_repeat_of_period_50():
    # [BOS, r, r], 101 tokens.
    repeats = jittered_repeats(
        n_prompts=16,
        n_tokens=101,
        vocab_size=1024,
        bos_token_id=0,
        generator=torch.Generator().manual_seed(78),
        period=(50, 50),
        gap=(0, 0),
    )
    plain = repeat_scores(model(), repeats)
    assert plain.induction[1].max() >= 0.85
    assert plain.previous_token[0].max() >= 0.85


def test_python_that_it_never_saw_costs_less_than_half_the_unigram_entropy():
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    stream = torch.cat(
        [
            torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in stdlib_sources(held_out=True)
        ]
    )
    loss = text_loss(model(), stream, bos_token_id=0, n_tokens=192)
    assert loss < unigram_entropy(stream, vocab_size=1024) / 2


def test_only_attention_acts():
    for block in model().model.layers:
        assert not any(weight.any() for weight in block.mlp.parameters())


def test_the_tokenizer_loads_offline_puts_the_start_token_first_and_loses_nothing():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    tokenizer = AutoTokenizer.from_pretrained(demo_path())
    text = "def stripe(x):\n    return {'é': x[1:]}  # ünïcode \U0001f600\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.bos_token_id == model().config.bos_token_id == ids[0] == 0
    assert tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == text
    assert len(tokenizer) == model().config.vocab_size == 1024


def test_everything_together_is_small():
    assert sum(path.stat().st_size for path in demo_path().iterdir()) <= 5_000_000


def test_the_record_agrees_with_the_weights():
    measured = json.loads((demo_path() / "training.json").read_text())["measured"]
    seed = measured["repeats"].pop("seed")
    repeats = jittered_repeats(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in measured["repeats"].items()},
        vocab_size=1024,
        bos_token_id=0,
        generator=torch.Generator().manual_seed(seed),
    )
    anew = repeat_scores(model(), repeats)
    assert anew.induction == approx(torch.tensor(measured["induction"]), abs=2e-3)
    assert anew.previous_token == approx(torch.tensor(measured["previous_token"]), abs=2e-3)
    assert anew.loss_nats == approx(measured["second_copy_loss_nats"], abs=2e-3)


def test_an_installation_without_the_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "demo.py"))
    with pytest.raises(
        ModelNotFound, match=r"demo_model holds no model\.safetensors.*python -m headscope\.training\.demo"
    ):
        demo_path()


def test_building_writes_a_folder_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # The real command on two files and one step a phase: everything but the training itself.
    texts = [Path(json.__file__).read_text(), Path(os.__file__).read_text()]
    monkeypatch.setattr(demo_training, "stdlib_sources", lambda held_out: texts[:1] if held_out else texts)
    phases = [{**phase, "recipe": replace(phase["recipe"], n_steps=1, decay_steps=0)} for phase in demo_training.PHASES]
    assert all(isinstance(phase["recipe"], Recipe) for phase in phases)
    lines: list[str] = []
    record = demo_training.build_demo(tmp_path / "made", phases=phases, report=lines.append)
    assert json.loads((tmp_path / "made" / "training.json").read_text()) == json.loads(json.dumps(record))
    assert sum("phase" in line for line in lines) == len(phases)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert made.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "made")("x = 1")["input_ids"][0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_the_command_trains_on_one_thread_and_prints_what_was_measured(tmp_path, monkeypatch, capsys):
    asked = []

    def build(out, *, seed, report):
        asked.append((out, seed, torch.get_num_threads()))
        report("step 1")
        return {"measured": {"loss": 1.5}}

    monkeypatch.setattr(demo_training, "build_demo", build)
    threads = torch.get_num_threads()
    try:
        demo.main(["--out", str(tmp_path), "--seed", "3"])
    finally:
        torch.set_num_threads(threads)
    assert asked == [(tmp_path, 3, 1)]
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"loss": 1.5}
    assert printed.err == "step 1\n"
