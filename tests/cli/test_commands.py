"""The commands on good input: their documents equal what the API returns, their tables name what was found."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model, LlamaConfig, LlamaForCausalLM

import headscope as hs
from headscope.cli.main import main
from headscope.evidence.check.measure import agreement
from headscope.evidence.params.measure import count_parameters
from headscope.evidence.scan.result import Scan
from headscope.model import kernels

SMALL = ("--period", "12", "--n-prompts", "4")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    config = GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=97, n_positions=64, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_scan_json_equals_the_api(headscope, gpt2):
    ran = headscope("scan", gpt2, *SMALL, "--seed", 3, "--json")
    assert (ran.code, ran.err) == (0, "")
    printed = json.loads(ran.out)
    model = hs.load(gpt2)
    result = hs.scan(model, probe=hs.repeated_tokens(model, period=12, n_prompts=4, seed=3)).to_dict()
    for varying in ("timing", "provenance"):
        del printed[varying], result[varying]
    assert printed == result


def test_scan_document_has_what_other_programs_rely_on(headscope, gpt2):
    document = json.loads(headscope("scan", gpt2, *SMALL, "--json").out)
    assert document["schema"] == "headscope.scan/1"
    model = {"id", "revision", "family", "n_layers", "n_heads", "n_kv_heads", "support"}
    assert model <= document["model"].keys()
    assert len(document["heads"]) == 8
    assert {"layer", "head", "scores"} <= document["heads"][0].keys()
    assert {"mean", "ci95", "chance"} <= document["heads"][0]["scores"]["induction"].keys()
    assert {"induction", "previous_token"} <= document["found"].keys()
    assert {"wall_s", "tokens"} <= document["timing"].keys()
    # 4 prompts and 4 controls of 1 + 3 + 2 * 15 + 3 = 37 tokens: a quarter of period 12 is 3.
    assert document["timing"]["tokens"] == 2 * 4 * 37


def test_scan_of_demo_names_its_heads(headscope):
    ran = headscope("scan")
    assert ran.code == 0
    heads = hs.scan("demo").heads("induction")
    assert heads
    assert heads[0].head.layer == 1
    first = next(line for line in ran.out.splitlines() if line.startswith("induction "))
    assert str(heads[0].head) in first
    assert f"{heads[0].mean:.3f}" in first
    assert re.search(r"^previous_token +L0H\d", ran.out, flags=re.MULTILINE)


def test_scan_that_finds_nothing_says_so_and_succeeds(headscope, gpt2):
    ran = headscope("scan", gpt2, *SMALL)
    assert ran.code == 0
    assert "No head found for induction" in ran.out


def test_scan_saves_what_it_printed(headscope, gpt2, tmp_path):
    ran = headscope("scan", gpt2, *SMALL, "--out", tmp_path / "new" / "folder")
    assert f"Results: {tmp_path / 'new' / 'folder' / 'scan.json'}" in ran.out.replace("\n", "")
    saved = Scan.load(tmp_path / "new" / "folder")
    best = saved.ranked("induction")[0]
    assert f"{best.head}" in ran.out
    assert (tmp_path / "new" / "folder" / "scan.parquet").exists()


def test_scan_reads_the_users_tokens_and_text(headscope, gpt2, tmp_path):
    ids = [[5, 6, 7, 8, 5, 6, 7, 8], [9, 10, 11, 9, 10, 11]]
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    document = json.loads(headscope("scan", gpt2, "--tokens", tmp_path / "ids.json", "--json").out)
    assert document["timing"]["tokens"] == 14
    assert document["heads"][0]["scores"]["induction"]["control"] is None
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\ndef f(x):\n    return x\n")
    document = json.loads(headscope("scan", "demo", "--text", tmp_path / "text.txt", "--json").out)
    assert document["probe"]["kind"] == "text"
    assert document["heads"][0]["scores"]["induction"]["ci95"] is None


def test_heatmap_has_a_row_per_layer_and_a_map_per_role(headscope, gpt2):
    out = headscope("scan", gpt2, *SMALL, "--heatmap", "--detector", "induction", "--detector", "first_token").out
    assert len(re.findall(r"^L[01] [ ░▒▓█·]{0,8}$", out, flags=re.MULTILINE)) == 4


def test_headless_model_scans(headscope, tmp_path):
    torch.manual_seed(0)
    GPT2Model(GPT2Config(n_layer=2, n_head=4, n_embd=32, vocab_size=97, n_positions=64)).save_pretrained(tmp_path)
    assert headscope("scan", tmp_path, *SMALL).code == 0


def test_check_json_equals_the_api(headscope, gpt2):
    document = json.loads(headscope("check", gpt2, "--json").out)
    assert document == agreement(hs.load(gpt2)).to_dict()
    assert document["schema"] == "headscope.check/1"
    assert document["support"] == "exact"
    assert document["max_abs_diff"] < 1e-4
    assert document["reason"]


def test_check_gives_its_verdict_on_a_model_without_attention(headscope, mamba):
    ran = headscope("check", mamba, "--json")
    assert ran.code == 0
    document = json.loads(ran.out)
    assert (document["support"], document["max_abs_diff"]) == ("unsupported", None)
    assert "no softmax attention" in document["reason"]


def test_a_difference_that_is_no_number_is_null_in_the_document(headscope, gpt2, monkeypatch):
    flash = kernels.flash
    monkeypatch.setitem(kernels.KERNELS, "flash", lambda *args: (flash(*args)[0] * torch.nan, flash(*args)[1]))
    monkeypatch.setattr("headscope.model.selfcheck._hooks_route", lambda *_: iter(()))
    document = json.loads(headscope("check", gpt2, "--json").out, parse_constant=pytest.fail)
    assert (document["support"], document["max_abs_diff"]) == ("unsupported", None)
    assert "differs from its own by nan" in document["reason"]


def test_params_of_gpt2_small_shape(tmp_path):
    # GPT-2 small: 4 * 768 * 64 = 196,608 weights a head, 3 * 64 biases; 124,439,808 parameters in all.
    with torch.device("meta"):
        total = sum(weight.numel() for weight in GPT2LMHeadModel(GPT2Config()).parameters())
    assert total == 124_439_808
    torch.manual_seed(0)
    # The same heads in two layers of that shape with a small vocabulary.
    config = GPT2Config(n_layer=2, vocab_size=50, n_positions=64)
    count = count_parameters(GPT2LMHeadModel(config))
    assert (count.per_head, count.per_head_with_bias, count.circuit) == (196_608, 196_800, 393_216)
    # Five induction and two previous-token heads: 7 * 196,608 = 1,376,256, which is 1.106% of GPT-2 small.
    assert 7 * count.per_head == 1_376_256
    assert f"{7 * count.per_head / total:.3%}" == "1.106%"


def test_params_json_and_named_circuit_share_kv_heads(headscope, tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=97, attention_bias=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    document = json.loads(headscope("params", tmp_path, "--head", "L1H0", "--head", "1.1", "--json").out)
    assert document["schema"] == "headscope.params/1"
    # d_model 32, d_head 16: W_Q + W_O = 32 * (16 + 16) = 1,024 = W_K + W_V. Query heads 0 and 1 share KV head 0.
    assert document["per_head"] == 2048
    assert document["per_head_with_bias"] == 2048 + 3 * 16
    assert document["circuit"]["parameters"] == 1024 + 1024 + 1024
    assert document["share"] == pytest.approx(3072 / document["model_total"])


def test_without_a_control_the_remark_does_not_speak_of_one(headscope, gpt2, tmp_path):
    (tmp_path / "ids.json").write_text(json.dumps([[1, 2, 3, 1, 2, 3]]))
    assert "half of it gone on the control." in headscope("scan", gpt2, *SMALL).out
    own = headscope("scan", gpt2, "--tokens", tmp_path / "ids.json").out
    assert "Found: score at least 0.4, on the score alone: without a control," in own
    assert "gone on the control" not in own


def test_a_precision_that_was_not_reached_is_not_claimed(headscope, gpt2, monkeypatch):
    monkeypatch.setattr("headscope.evidence.scan.measure.MAX_PROMPTS", 8)
    ran = headscope("scan", gpt2, *SMALL, "--precision", "1e-200")
    assert ran.code == 0
    assert re.search(r"Precision 1e-200 was not reached in 8 prompts: the widest interval is ± 0\.\d+\.", ran.out)
    assert "Precision" not in headscope("scan", gpt2, *SMALL, "--precision", "0.9").out


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe has another error number there")
@pytest.mark.parametrize("arguments", [("scan", *SMALL, "--json"), ("scan", *SMALL), ("params",)], ids=" ".join)
def test_a_reader_that_leaves_is_no_defect(arguments, gpt2, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    command, *options = arguments
    with open(writing, "w") as pipe, capsys.disabled():
        monkeypatch.setattr(sys, "stdout", pipe)
        monkeypatch.setattr(sys, "argv", ["headscope", command, str(gpt2), *options])
        with pytest.raises(SystemExit) as end:
            main()
        monkeypatch.undo()
    assert end.value.code == 0


def test_the_version(headscope):
    ran = headscope("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"headscope {hs.__version__}\n", "")


def test_help_is_quick_and_shows_an_example_for_each_command(headscope):
    for command in ("scan", "check", "params"):
        ran = headscope(command, "--help")
        assert ran.code == 0
        assert f"headscope {command} demo" in ran.out.replace("\n", " ")
    code = "import sys, headscope.cli.main; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture(scope="module")
def mamba(tmp_path_factory):
    from transformers import MambaConfig, MambaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "mamba"
    MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=97)).save_pretrained(folder)
    return folder


def test_make_clean_removes_what_make_made_and_no_other_results():
    root = Path(__file__).parents[2]
    done = subprocess.run(["make", "--dry-run", "clean"], cwd=root, capture_output=True, text=True, check=True)
    assert {word for word in done.stdout.split() if word.startswith("results")} == {"results/demo"}
