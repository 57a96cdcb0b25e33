"""A second model beside the first on the same prompt: what was changed is seen, and a model beside itself is alike."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pytest import approx
from tokenizers import normalizers
from transformers import AutoModelForCausalLM

import headscope as hs
from headscope.errors import ArgumentError
from headscope.explore.against import Against
from headscope.explore.reading import Reader
from headscope.heads import HeadId
from headscope.planted.handbuilt import handbuilt
from headscope.training.demo import demo_path

HEAD = HeadId(1, 3)
"""A head of the last layer: no other reads what it writes."""


@pytest.fixture(scope="module")
def other() -> Reader:
    """The packaged model, one of whose heads asks nothing and so spreads evenly."""
    model = AutoModelForCausalLM.from_pretrained(demo_path()).eval()
    with torch.no_grad():
        model.model.layers[HEAD.layer].self_attn.q_proj.weight[HEAD.head * 32 : HEAD.head * 32 + 32] = 0.0
        bias = model.model.layers[HEAD.layer].self_attn.q_proj.bias
        if bias is not None:
            bias[HEAD.head * 32 : HEAD.head * 32 + 32] = 0.0
    return Reader(hs.load(model, tokenizer=hs.load("demo").tokenizer))


def test_a_model_beside_itself_looks_alike(reader, text):
    found = Against(reader, reader).read(text)
    assert found.reading == reader.read(text)
    assert found.difference == 0
    assert [one.distance for one in found.heads] == [0.0] * 12


def test_the_head_that_differs_comes_first_by_the_distance_of_its_patterns(reader, other, text, eager):
    found = Against(reader, other).read(text)
    tokens = reader.tokens(text)
    pattern = eager.run(tokens).attentions[HEAD.layer][0, HEAD.head].numpy()
    n = len(tokens)
    # Without queries each query spreads evenly over its keys: 1 / (q + 1)
    even = np.tril(np.ones((n, n))) / np.arange(1, n + 1)[:, None]
    expected = np.abs(pattern - even)[1:].sum(1).mean() / 2
    assert (found.heads[0].head, found.heads[0].distance) == (HEAD, approx(expected, abs=2e-3))
    assert [one.distance for one in found.heads[1:]] == approx([0.0] * 11, abs=1e-3)
    losses = [one.read(text).mean_clean for one in (reader, other)]
    assert found.difference == approx(losses[1] - losses[0], abs=1e-6)


def test_heads_are_switched_off_in_both(reader, other, text):
    # The changed head is off in both, and both are then the same function.
    found = Against(reader, other).read(text, off=[HEAD], method="zero")
    assert found.difference == approx(0.0, abs=1e-5)
    assert found.reading.off == (HEAD,)


def test_a_text_that_two_tokenizers_cut_differently_is_refused(reader, text):
    loaded = hs.load("demo")
    lowering = copy.deepcopy(loaded.tokenizer)
    lowering._tokenizer.normalizer = normalizers.Lowercase()  # the same vocabulary, and other tokens for a capital
    both = Against(reader, Reader(hs.load(loaded.hf, tokenizer=lowering)))
    assert both.read(text.lower()).difference == approx(0.0, abs=1e-6)
    with pytest.raises(ArgumentError, match="tokenizers cut it differently"):
        both.read("Alpha Beta Alpha")


def test_another_vocabulary_is_refused():
    few, many = (handbuilt(vocab_size=size, n_positions=64, n_digits=1).model for size in (64, 80))
    with pytest.raises(ArgumentError, match="another vocabulary"):
        Against(Reader(hs.load(few)), Reader(hs.load(many)))


def test_the_server_asks_the_second_model(running, reader, other, text):
    server = running(against=Against(reader, other))
    assert server.send("/api/model")[1]["against"]["n_heads"] == 6
    found = server.ask("against", {"text": text})
    assert (found["heads"][0]["layer"], found["heads"][0]["head"]) == (HEAD.layer, HEAD.head)
    asked = {"text": text, "head": str(HEAD)}
    first, second = (server.ask("pattern", {**asked, "of": of})["bytes"] for of in ("model", "against"))
    assert first != second
    assert second == server.ask("pattern", {**asked, "of": "against"})["bytes"]


def test_without_a_second_model_the_server_says_so(running):
    server = running()
    assert server.send("/api/model")[1]["against"] is None
    status, answer, _ = server.send("/api/against", {"text": "the"})
    assert status == 422
    assert "--against" in answer["error"]
