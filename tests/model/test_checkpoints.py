"""Checkpoints that others write: nanoGPT, a Trainer, GGUF, models that also see, classifiers."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

import headscope as hs
from benchmarks.gguf_file import gguf_of
from benchmarks.nanogpt import NanoGPT
from benchmarks.tiny import tiny_causal_lm, tiny_seeing
from headscope.errors import ArgumentError, ModelError, ModelNotFound, UnsafeWeights, UnsupportedModel
from headscope.model.load import load
from headscope.model.sources import gguf as gguf_source
from tests.model.test_load import hub, refusal  # noqa: F401

IDS = torch.arange(21).reshape(3, 7)


def run(model):
    with torch.no_grad():
        return model.backbone.run(IDS)


# nanoGPT


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("prefix", "mask"), [("", False), ("_orig_mod.", True)])
def test_a_checkpoint_of_nanogpt_gives_its_logits(bias, prefix, mask, tmp_path):
    model = NanoGPT(bias=bias, mask=mask)
    torch.save(model.checkpoint(prefix=prefix), tmp_path / "ckpt.pt")
    for source in (tmp_path / "ckpt.pt", tmp_path):
        opened = load(source, allow_pickle=True)
        with torch.no_grad():
            torch.testing.assert_close(run(opened), model(IDS), atol=1e-6, rtol=1e-6)
    assert (opened.check.support, opened.family, opened.max_tokens) == ("exact", "gpt2", 24)


def test_a_checkpoint_of_nanogpt_needs_the_flag(tmp_path):
    torch.save(NanoGPT(bias=True).checkpoint(), tmp_path / "ckpt.pt")
    assert "is a pickle, which can run code when loaded; pass --allow-pickle" in refusal(
        UnsafeWeights, tmp_path / "ckpt.pt"
    )


def test_a_revision_does_not_apply_to_a_file(tmp_path):
    torch.save(NanoGPT(bias=True).checkpoint(), tmp_path / "ckpt.pt")
    told = refusal(ArgumentError, tmp_path / "ckpt.pt", allow_pickle=True, revision="main")
    assert "revision='main' does not apply to a file" in told


class Runs:
    """A pickle of it runs code when it is read without limits."""

    ran = False

    def __reduce__(self):
        return setattr, (Runs, "ran", True)


def test_code_in_a_checkpoint_of_nanogpt_does_not_run(tmp_path):
    torch.save(NanoGPT(bias=True).checkpoint() | {"config": Runs()}, tmp_path / "ckpt.pt")
    assert "could not be loaded as tensors and plain values" in refusal(
        ModelError, tmp_path / "ckpt.pt", allow_pickle=True
    )
    assert not Runs.ran


def broken(change):
    held = NanoGPT(bias=True).checkpoint()
    change(held)
    return held


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.pop("model"), "it has no `model` with weights"),
        (lambda held: held["model_args"].update(n_head=5), "5 heads in a width of 32"),
        (lambda held: held["model_args"].update(n_head=0), "or no `model_args` with n_head"),
        (lambda held: held["model"].pop("transformer.h.1.ln_1.bias"), "missing, new or of another shape"),
        (lambda held: held["model"].pop("transformer.h.0.attn.c_attn.weight"), "missing, new or of another shape"),
        (lambda held: held["model"].update({"more": torch.ones(3)}), "missing, new or of another shape"),
        (lambda held: held["model"].update({"lm_head.weight": torch.ones(40, 32)}), "that is not its embedding"),
        (lambda held: held["model"].update({"huge": torch.ones(1).expand(10**9)}), "larger than its storage"),
        (lambda held: held.update(model=[1]), "it has no `model` with weights"),
        (lambda held: held["model"].update({"step": 3}), "step, which is no tensor of numbers"),
        (lambda held: held["model"].update({"ids": torch.arange(3)}), "ids, which is no tensor of numbers"),
        (lambda held: held["model"].pop("transformer.wpe.weight"), "no table transformer.wpe.weight"),
    ],
)
def test_what_is_no_checkpoint_of_nanogpt_is_one_line(change, words, tmp_path):
    torch.save(broken(change), tmp_path / "ckpt.pt")
    assert words in refusal(ModelError, tmp_path / "ckpt.pt", allow_pickle=True)


# A Trainer


@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_trainer_s_checkpoint_opens_beside_what_training_needs(allow_pickle, tmp_path):
    hf = tiny_causal_lm("llama")
    folder = tmp_path / "checkpoint-500"
    hf.save_pretrained(folder)
    torch.save({"state": {0: torch.ones(3)}}, folder / "optimizer.pt")
    torch.save(torch.get_rng_state(), folder / "rng_state.pth")
    torch.save({"last_epoch": 500}, folder / "scheduler.pt")
    torch.save(Runs(), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 500, "log_history": [{"loss": 1.0}]}))
    opened = load(folder, allow_pickle=allow_pickle)
    with torch.no_grad():
        torch.testing.assert_close(run(opened), hf(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
    assert not Runs.ran


# A classifier


def test_a_classifier_is_the_model_below_its_head(tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    config.num_labels = 3
    hf = LlamaForSequenceClassification(config).eval()
    hf.save_pretrained(tmp_path)
    opened = load(tmp_path)
    assert type(opened.module).__name__ == "LlamaModel"
    with torch.no_grad():
        wanted = hf.model(input_ids=IDS, output_attentions=False).last_hidden_state
        torch.testing.assert_close(run(opened), wanted, atol=1e-6, rtol=1e-6)
    scores = hs.scan(opened, probe=hs.repeated_tokens(opened, n_prompts=2, period=6)).scores
    assert len({score.head for score in scores}) == 8


# Models that also see


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava", "paligemma", "gemma3"])
def test_a_model_that_also_sees_is_scanned_on_text(family, tmp_path):
    hf = tiny_seeing(family)
    hf.save_pretrained(tmp_path)
    opened = load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(run(opened), hf(input_ids=IDS).logits, atol=1e-5, rtol=1e-5)
        given = opened.backbone.logits(opened.run(IDS, lambda attention: None))
        torch.testing.assert_close(given, hf(input_ids=IDS).logits, atol=2e-5, rtol=1e-5)
        own = hf(input_ids=IDS, output_attentions=True).attentions
    seen = {}
    opened.run(IDS, lambda attention: seen.update({attention.layer: attention.pattern()}))
    assert (opened.check.support, len(own)) == ("exact", opened.n_layers)
    for layer, pattern in enumerate(own):
        torch.testing.assert_close(seen[layer], pattern, atol=1e-5, rtol=0)
    scores = hs.scan(opened, probe=hs.repeated_tokens(opened, n_prompts=2, period=6)).scores
    assert len({score.head for score in scores}) == 8


def test_a_model_whose_output_depends_on_its_setting_is_checked_as_it_is_set():
    # Without an image PaliGemma masks later tokens in its eager attention alone: that is not what it does as set.
    hf = tiny_seeing("paligemma")
    hf.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedModel, match="set to sdpa its output differs .* attn_implementation='eager'"):
        load(hf)
    hf.set_attn_implementation("eager")
    assert load(hf).check.support == "exact"


# GGUF


needs_gguf = pytest.mark.skipif(find_spec("gguf") is None, reason="the package gguf is not installed")


@needs_gguf
def test_a_gguf_gives_the_logits_of_the_model_that_it_was_made_from(tmp_path, hub):  # noqa: F811
    hf = tiny_causal_lm("llama")
    path = gguf_of(hf, tmp_path / "tiny.gguf")
    with torch.no_grad():
        wanted = hf(input_ids=IDS).logits
    for opened in (load(path), load(tmp_path, gguf_file="tiny.gguf")):
        torch.testing.assert_close(run(opened), wanted, atol=1e-5, rtol=1e-5)
        assert opened.check.support == "exact"
    (tmp_path / "repository").mkdir()
    shutil.copy(path, tmp_path / "repository")
    opened = load(hub(tmp_path / "repository", "someone/gguf"), gguf_file="tiny.gguf")
    torch.testing.assert_close(run(opened), wanted, atol=1e-5, rtol=1e-5)


@needs_gguf
def test_a_gguf_that_transformers_reads_as_another_model_is_refused(tmp_path):
    hf = tiny_causal_lm("llama")
    scaled = gguf_of(hf, tmp_path / "scaled.gguf", floats={"llama.rope.scaling.factor": 8.0})
    assert "scales its rotary frequencies" in refusal(UnsupportedModel, scaled)
    freed = gguf_of(hf, tmp_path / "freed.gguf", rope_freqs__weight=torch.ones(16))
    assert "finds a place for" in refusal(UnsupportedModel, freed)
    biased = gguf_of(hf, tmp_path / "biased.gguf", blk__0__attn_q__bias=torch.ones(128))
    assert "finds a place for" in refusal(UnsupportedModel, biased)
    lacking = gguf_of(hf, tmp_path / "lacking.gguf", without=["blk.1.attn_v"])
    assert "lacks 1 of its weights" in refusal(ModelError, lacking)


def test_a_gguf_that_is_none_is_one_line(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    path = folder / "tiny.gguf"
    path.write_bytes(b"GGUF" + bytes(range(200)))
    shutil.copy(path, tmp_path / "outside.gguf")
    assert refusal(ModelError, path)
    assert "has no file other.gguf" in refusal(ModelNotFound, folder, gguf_file="other.gguf")
    assert "leads out of its folder" in refusal(ModelError, folder, gguf_file="../outside.gguf")
    assert "is neither" in refusal(ArgumentError, path, gguf_file="tiny.gguf")
    monkeypatch.setattr(gguf_source, "find_spec", lambda name: None)
    assert "needs the packages gguf and accelerate; install them" in refusal(UnsupportedModel, path)
