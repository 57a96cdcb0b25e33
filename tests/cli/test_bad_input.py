"""Bad input: exit code 2 and one line on stderr that says what was given, what is needed and what to do."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    MambaConfig,
    MambaForCausalLM,
)

SMALL = dict(n_layer=2, n_head=4, n_embd=32, vocab_size=97, n_positions=64, bos_token_id=0, eos_token_id=0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(**SMALL))
    gpt2.save_pretrained(root / "good")
    (root / "without_weights").mkdir()
    (root / "pickled").mkdir()
    for name in ("without_weights", "pickled"):
        (root / name / "config.json").write_text((root / "good" / "config.json").read_text())
    torch.save(gpt2.state_dict(), root / "pickled" / "pytorch_model.bin")
    (root / "empty").mkdir()
    MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=97)).save_pretrained(root / "mamba")
    encoder = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, vocab_size=97
    )
    BertLMHeadModel(encoder).save_pretrained(root / "bert")
    with torch.no_grad():
        gpt2.transformer.h[1].attn.c_attn.weight[0, 0] = float("nan")
    gpt2.save_pretrained(root / "nan")
    (root / "empty.txt").write_text("  \n")
    (root / "text.txt").write_text("to be or not to be")
    (root / "outside.json").write_text(json.dumps([[1, 2, 97]]))
    (root / "negative.json").write_text(json.dumps([[1, -2, 3]]))
    (root / "floats.json").write_text(json.dumps([[1.5, 2]]))
    (root / "broken.json").write_text("[[1, 2")
    (root / "words.json").write_text(json.dumps({"tokens": "no"}))
    (root / "long.json").write_text(json.dumps([[1] * 65]))
    (root / "none.json").write_text("[]")
    (root / "deep.json").write_text("[" * 100_000)
    GPT2Model(GPT2Config(**SMALL)).save_pretrained(root / "headless")
    (root / "latin1.txt").write_bytes("Müll ".encode("latin-1") * 2000)
    return root


SHORT = ("--n-prompts", "2", "--period", "8")

CASES = {
    "a name that is nothing": (("scan", "no-such/model"), "no model 'no-such/model'"),
    "a folder that is not there": (("scan", "./nowhere"), "not a folder"),
    "an empty folder": (("scan", "{root}/empty"), "no config.json"),
    "a folder without weights": (("scan", "{root}/without_weights"), "no weights"),
    "pickled weights only": (("scan", "{root}/pickled"), "only pickled weights .*--allow-pickle"),
    "no attention": (("scan", "{root}/mamba"), "no softmax attention"),
    "an encoder": (("scan", "{root}/bert"), "later tokens"),
    "NaN weights": (("scan", "{root}/nan"), r"NaN .*h\.1\.attn\.c_attn\.weight"),
    "empty text": (("scan", "demo", "--text", "{root}/empty.txt"), "text is empty"),
    "text without a tokenizer": (("scan", "{root}/good", "--text", "{root}/text.txt"), "no tokenizer"),
    "a missing text file": (("scan", "demo", "--text", "{root}/gone.txt"), r"gone\.txt' cannot be read"),
    "ids outside the vocabulary": (
        ("scan", "{root}/good", "--tokens", "{root}/outside.json"),
        "id 97 is outside .* 96",
    ),
    "negative ids": (("scan", "{root}/good", "--tokens", "{root}/negative.json"), "-2"),
    "ids that are not whole": (("scan", "{root}/good", "--tokens", "{root}/floats.json"), "whole numbers"),
    "broken JSON": (("scan", "{root}/good", "--tokens", "{root}/broken.json"), "not JSON"),
    "JSON of another kind": (("scan", "{root}/good", "--tokens", "{root}/words.json"), "list"),
    "no prompt at all": (("scan", "{root}/good", "--tokens", "{root}/none.json"), "no prompt"),
    "a prompt past the context": (("scan", "{root}/good", "--tokens", "{root}/long.json"), "65 tokens.* at most 64"),
    "a probe past the context": (("scan", "{root}/good", "--period", "40"), "at most 64"),
    "period 1": (("scan", "demo", "--period", "1"), "period=1.* at least 3"),
    "n_prompts 0": (("scan", "demo", "--n-prompts", "0"), "n_prompts=0.* at least 1"),
    "n_repeats 1": (("scan", "demo", "--n-repeats", "1"), "n_repeats=1.* at least 2"),
    "precision 0": (("scan", "demo", "--precision", "0"), "precision=0.* positive"),
    "precision inf": (("scan", "demo", "--precision", "inf"), "precision=inf.* positive"),
    "a name that the system refuses": (("scan", "x" * 300), "^headscope: "),
    "tokens nested past reading": (("scan", "demo", "--tokens", "{root}/deep.json"), "deep.json' is not JSON"),
    "an unknown detector": (("scan", "demo", "--detector", "magic"), "no detector 'magic'.* induction"),
    "an unknown dtype": (("scan", "demo", "--dtype", "float31"), "float31.* float32"),
    "a device that is not there": (("scan", "demo", "--device", "cuda:99"), "cuda:99"),
    "text and tokens": (("scan", "demo", "--text", "a", "--tokens", "b"), "--text and --tokens"),
    "a head that does not exist": (("params", "demo", "--head", "L9H9"), "no head L9H9"),
    "a head that is no head": (("params", "demo", "--head", "best"), "'best' is not a head"),
    "to verify a head that does not exist": (("verify", "demo", "--head", "L9H9"), "demo has no head L9H9; it has 2"),
    "to verify a head that is no head": (("verify", "demo", "--head", "best"), "'best' is not a head"),
    "to verify a head of a second call": (("verify", "demo", *SHORT, "--head", "L1H0#1"), "never reaches L1H0#1"),
    "to verify all heads by name": (
        ("verify", "{root}/good", *SHORT, *(f"--head=L{layer}H{head}" for layer in (0, 1) for head in range(4))),
        "all 8 heads of .* are to be ablated, which leaves nothing to compare; name fewer",
    ),
    "an unknown ablation": (("verify", "demo", "--ablation", "foo"), "'foo' is not known; use one of zero, mean, res"),
    "one prompt to verify on": (("verify", "demo", "--n-prompts", "1"), "--n-prompts 1; .* at least 2 prompts"),
    "period 1 to verify on": (("verify", "demo", "--period", "1"), "period=1.* at least 3"),
    "a natural text that is too short": (
        ("verify", "demo", *SHORT, "--natural", "{root}/text.txt"),
        r"the natural text has \d+ tokens; it needs at least 508, .* give a longer text",
    ),
    "a natural text that is not there": (
        ("verify", "demo", "--natural", "{root}/gone.txt"),
        r"gone\.txt' cannot be read",
    ),
    "a natural text in another encoding": (("verify", "demo", "--natural", "{root}/latin1.txt"), "as UTF-8 text"),
    "natural text without a tokenizer": (
        ("verify", "{root}/good", *SHORT, "--natural", "{root}/text.txt"),
        "no tokenizer, so it cannot read natural",
    ),
    "to verify without an LM head": (("verify", "{root}/headless", *SHORT), "headless.*(loss|logits)"),
    "to verify without attention": (("verify", "{root}/mamba"), "no softmax attention"),
    "to verify past the context": (("verify", "{root}/good", "--period", "40"), "at most 64"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_clear_line_and_exit_code_2(case, folders, headscope, request):
    arguments, said = CASES[case]
    ran = headscope(*(one.format(root=folders) for one in arguments))
    assert ran.code == 2
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("headscope: ")

    assert re.search(said, line), line


LONG = "9" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", LONG),
        ("scan", "demo", "--detector", LONG),
        ("scan", "demo", "--device", LONG),
        ("scan", "demo", "--dtype", LONG),
        ("scan", "demo", "--revision", LONG),
        ("scan", "demo", "--out", LONG),
        ("params", "demo", "--head", LONG),
        ("scan", f"--{LONG}"),
        (LONG,),
    ],
    ids=lambda arguments: "".join(arguments[::2])[:12],
)
def test_what_was_given_is_repeated_up_to_200_characters(arguments, headscope):
    ran = headscope(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert 0 < ran.err.count("9") <= 2 * 200, ran.err  # some errors say it twice


@pytest.mark.parametrize(
    "arguments",
    [
        ("scan", "no-such/model", "--out"),
        ("verify", "no-such/model", "--out"),
        ("circuit", "no-such/model", "--out"),
        ("behavior", "sycophancy", "no-such/model", "--out"),
        ("emergence", "no-such/model", "--out"),
        ("mosaic", "no-such/store", "--out"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_where_results_cannot_be_saved_is_told_before_any_work(arguments, folders, headscope):
    # The model is not there either, and is not even asked for.
    for place, why in (("text.txt/sub/r.svg", "Not a directory"), ("x" * 300, "File name too long")):
        ran = headscope(*arguments, folders / place)
        assert (ran.code, ran.out) == (2, "")
        told = f"{str(folders / place)!r} cannot be written: {why}; fix that, or name another place."
        assert ran.err == f"headscope: {told}\n".replace("x" * 300 + "'", "x" * 200 + "...")


def test_a_folder_is_no_picture_and_a_picture_no_folder(folders, headscope):
    assert "is a folder; name a file in it" in headscope("mosaic", "no-such/store", "--out", folders).err
    assert "cannot be written: Not a directory" in headscope("scan", "--out", folders / "text.txt").err


def test_a_folder_that_must_not_be_written_is_told(headscope, tmp_path, monkeypatch):
    # What the system says to all but its administrator.
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    assert "cannot be written: Permission denied" in headscope("scan", "no-such/model", "--out", tmp_path).err


def test_a_full_disk_is_told_in_one_line(headscope, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("headscope.records.document.write_whole", full)
    ran = headscope("scan", "demo", *SHORT, "--out", tmp_path / "out")
    assert ran.code == 2
    assert ran.err.endswith("out' cannot be written: No space left on device; fix that, or name another place.\n")


def test_a_defect_of_ours_exits_with_1_and_a_traceback(monkeypatch, headscope):
    import headscope.cli.main as entry

    def broken() -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(entry, "app", broken)
    with pytest.raises(ZeroDivisionError):
        entry.main()
    done = subprocess.run(
        [sys.executable, "-c", "import headscope.cli.main as m\ndef f(): 1/0\nm.app = f\nm.main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_usage_errors_exit_with_2(headscope):
    assert headscope("scan", "demo", "--period", "many").code == 2
    assert headscope("verify", "demo", "--top", "0").code == 2
    assert headscope("verify", "demo", "--natural").code == 2
    assert headscope("scna").code == 2
