"""Loss by token and the in-context-learning score: known answers, a plain loop, and everything that is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from pytest import approx
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2ForTokenClassification, GPT2LMHeadModel, GPT2Model

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError, ModelError, NonFiniteError, ShapeError, TokenError
from headscope.evidence.icl import measure as module
from headscope.evidence.icl.measure import InContext, icl
from headscope.planted.handbuilt import handbuilt
from headscope.records.common import Estimate

TINY = dict(vocab_size=64, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)


def stream(n_tokens, vocab_size=64, seed=0):
    """Random ids from 1 up."""
    return np.random.default_rng(seed).integers(1, vocab_size, n_tokens)


@pytest.fixture(scope="module")
def gpt2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**TINY, initializer_range=0.3)).eval()


def read_windows(model, **options):
    """The result, and every window that the model read, in order."""
    seen = []
    handle = model.register_forward_pre_hook(
        lambda _, args, named: seen.extend(named["input_ids"].tolist()), with_kwargs=True
    )
    try:
        loaded = hs.load(model)  # with the hook on it: its check reads prompts of its own
        seen.clear()
        return icl(loaded, **options), seen
    finally:
        handle.remove()


# ---- known answers


def test_uniform_logits_cost_log_vocabulary_everywhere_and_score_zero():
    model = GPT2LMHeadModel(GPT2Config(**TINY, tie_word_embeddings=False)).eval()
    with torch.no_grad():  # each logit the same, whatever the text
        model.lm_head.weight.copy_(torch.randn(TINY["n_embd"]).expand(TINY["vocab_size"], -1))
    result = icl(model, tokens=stream(500), early=5)
    assert result.loss.token == tuple(range(1, 64))
    assert result.loss.mean == approx([math.log(64)] * 63, rel=1e-6)
    assert result.score.mean == approx(0, abs=1e-6)
    assert result.score.ci95 == approx((0, 0), abs=1e-6)


def test_loss_falls_from_log_vocabulary_to_nothing_where_an_induction_model_has_read_it_before():
    # The start token is token 0, r is tokens 1 to 20 and again 21 to 40. The first token of the second copy is not yet
    # determined. Before it each of 256 tokens has the logit 0, after it the copied one leads by 12 nats a digit.
    rng = np.random.default_rng(0)
    runs = [1 + rng.permutation(255)[:20] for _ in range(6)]
    result = icl(handbuilt().model, tokens=[np.tile(run, 2).tolist() for run in runs], window=41, early=10, late=35)
    assert result.settings["n_windows"] == 6
    assert result.loss.mean[:20] == approx([math.log(256)] * 20, abs=1e-3)
    assert max(result.loss.mean[21:]) < 1e-3
    assert result.score.mean == approx(-math.log(256), abs=2e-3)
    assert result.loss.at(35).mean == result.loss.mean[34]


def test_a_plain_loop_over_transformers_own_logits_gives_the_same_numbers(gpt2):
    ids = stream(4 * 31 + 5)
    result = icl(gpt2, tokens=ids, window=32, early=3, late=20)
    slow = []
    for start in range(0, 4 * 31, 31):
        prompt = torch.tensor([[0, *ids[start : start + 31].tolist()]])
        with torch.no_grad():
            logits = gpt2(prompt).logits[0]
        slow.append([cross_entropy(logits[i - 1], prompt[0, i]).item() for i in range(1, 32)])
    slow = np.asarray(slow)
    assert result.loss.mean == approx(slow.mean(0), abs=1e-5)
    difference = slow[:, 20 - 1] - slow[:, 3 - 1]
    half = 3.182446 * difference.std(ddof=1) / 2  # t(0.975, 3), over the root of 4
    assert result.score.mean == approx(difference.mean(), abs=1e-5)
    assert result.score.ci95 == approx(Estimate.of(difference).ci95, abs=1e-3)
    assert result.score.ci95[0] <= difference.mean() - half + 1e-4
    assert result.score.ci95[1] >= difference.mean() + half - 1e-4
    spread = 3.182446 * slow[:, 6].std(ddof=1) / 2
    assert result.loss.at(7).ci95 == approx(Estimate.of(slow[:, 6]).ci95, abs=1e-3)
    assert result.loss.at(7).ci95[0] <= slow[:, 6].mean() - spread + 1e-4
    assert result.loss.at(7).ci95[1] >= slow[:, 6].mean() + spread - 1e-4


def test_batches_of_any_size_give_the_same_losses(gpt2, monkeypatch):
    ids, read = stream(600), []
    whole = icl(gpt2, tokens=ids, early=5)
    monkeypatch.setitem(module.BATCH_LOGITS, "cpu", 2 * 64 * 64)
    parts = icl(gpt2, tokens=ids, early=5, progress=lambda done, total: read.append((done, total)))
    assert parts.loss.mean == approx(whole.loss.mean, abs=1e-5)
    assert read == [(128, 576), (256, 576), (384, 576), (512, 576), (576, 576)]  # 9 windows of 64, two at a time


# ---- windows


def test_windows_are_disjoint_in_order_and_begin_with_the_start_token(gpt2):
    ids = np.arange(63 * 8 + 10) % 63 + 1
    result, seen = read_windows(gpt2, tokens=ids, early=5)
    assert [row[0] for row in seen] == [0] * 8
    assert [one for row in seen for one in row[1:]] == ids[: 63 * 8].tolist()
    assert result.settings["n_windows"] == result.settings["n_available"] == 8
    assert result.timing.tokens == 8 * 64


def test_without_a_start_token_windows_hold_text_alone():
    model = GPT2LMHeadModel(GPT2Config(**TINY | {"bos_token_id": None, "eos_token_id": None})).eval()
    ids = stream(64 * 3)
    result, seen = read_windows(model, tokens=ids, early=5)
    assert np.concatenate(seen).tolist() == ids.tolist()
    assert result.settings["bos"] is False


def test_no_window_crosses_from_one_text_to_the_next_or_repeats_a_start_token(gpt2):
    first, second = stream(25, seed=1), stream(19, seed=2)
    _, seen = read_windows(gpt2, tokens=[[0, *first.tolist()], second.tolist()], window=10, early=2, late=8)
    assert seen == [
        [0, *first[:9].tolist()],
        [0, *first[9:18].tolist()],
        [0, *second[:9].tolist()],
        [0, *second[9:18].tolist()],
    ]


def test_more_windows_than_asked_for_are_drawn_by_the_seed_without_repetition(gpt2):
    ids = stream(63 * 20)
    options = dict(tokens=ids, early=5, n_windows=6)
    result, seen = read_windows(gpt2, **options)
    _, again = read_windows(gpt2, **options)
    _, other = read_windows(gpt2, **options, seed=1)
    assert seen == again
    assert seen != other
    starts = [tuple(row[1:]) for row in seen]
    every = [tuple(piece) for piece in ids.reshape(20, 63).tolist()]
    assert len(set(starts)) == 6
    assert set(starts) <= set(every)
    assert (result.settings["n_windows"], result.settings["n_available"]) == (6, 20)


def test_where_the_context_is_short_the_default_late_is_its_last_token(gpt2):
    result = icl(gpt2, tokens=stream(500), early=5)
    assert (result.settings["window"], result.settings["late"]) == (64, 63)
    assert result.note == "windows of 64 tokens end before token 500; late is their last token, 63"


def test_where_50_is_too_late_the_default_early_is_a_tenth_of_late(gpt2):
    # windows of 40 tokens: late is 39, early 39 // 10 = 3; of 16 tokens: 15 and 1
    for window, late, early in ((40, 39, 3), (16, 15, 1)):
        result = icl(gpt2, tokens=stream(500), window=window)
        assert (result.settings["early"], result.settings["late"]) == (early, late)
        assert f"early is token {early}, since late is 50 or less" in result.note
    assert icl(gpt2, tokens=stream(500)).settings["early"] == 50


def test_without_a_stated_context_windows_hold_512_tokens_or_as_many_as_late_needs():
    model = tiny_causal_lm("gpt2")
    model.config.n_positions = -1
    assert module._lengths(hs.load(model), None, 50, None) == (512, 50, 500, None)
    assert module._lengths(hs.load(model), None, 50, 700) == (701, 50, 700, None)


# ---- text


def test_demo_reads_the_standard_library_by_default():
    result = icl("demo", n_windows=4)
    assert result.settings == {
        "source": "stdlib",
        "n_windows": 4,
        "n_available": result.settings["n_available"],
        "window": 512,
        "bos": True,
        "early": 50,
        "late": 500,
        "seed": 0,
    }
    assert result.settings["n_available"] > 100
    assert result.note is None
    assert 1 < np.mean(result.loss.mean[20:150]) < 4  # trained on windows this long; unigrams would give 6
    assert np.mean(result.loss.mean[300:]) > np.mean(result.loss.mean[20:150]) + 0.5  # but not this long
    assert min(result.loss.ci_low) >= 0
    assert result.score.mean == approx(result.loss.at(500).mean - result.loss.at(50).mean)


def test_text_is_read_as_the_tokenizer_reads_it():
    model = hs.load("demo")
    text = "".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(60))
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    by_text = icl(model, text=text, window=65, early=5)
    by_tokens = icl(model, tokens=ids, window=65, early=5)
    assert by_text.loss == by_tokens.loss
    assert icl(model, text=[text, text], window=65, early=5).settings["n_available"] == 2 * (len(ids) // 64)


# ---- the document


def test_the_document_is_plain_json(gpt2):
    result = icl(gpt2, tokens=stream(500), early=5, seed=3)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["schema"] == "headscope.icl/1"
    assert set(document) == {"schema", "model", "settings", "score", "loss", "note", "provenance", "timing"}
    assert document["score"]["mean"] == result.score.mean
    assert document["loss"]["mean"] == list(result.loss.mean)
    assert document["loss"]["token"] == list(range(1, 64))
    assert document["provenance"]["kernels"] == ["own"]
    assert document["provenance"]["seed"] == document["settings"]["seed"] == 3
    assert document["model"]["family"] == "gpt2"
    assert "token 63 minus token 5" in repr(result)
    assert InContext.from_dict(document) == result
    with pytest.raises(ArgumentError, match="schema 'headscope.scan/1' is not 'headscope.icl/1'"):
        InContext.from_dict(document | {"schema": "headscope.scan/1"})


def test_the_model_is_left_as_it_was(gpt2):
    gpt2.train()
    try:
        first = icl(gpt2, tokens=stream(500), early=5)
        assert gpt2.training
        assert first.loss == icl(gpt2, tokens=stream(500), early=5).loss  # no dropout
    finally:
        gpt2.eval()


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (dict(early=50, late=40), ArgumentError, "early=50 and late=40 in windows of 64 tokens; it needs 1 <= early <"),
        (dict(early=20, late=20), ArgumentError, "early=20 and late=20"),
        (dict(early=0), ArgumentError, "early=0 and late=63"),
        (dict(late=500), ShapeError, "late=500 needs windows of at least 501 tokens, but .* reads at most 64; use lat"),
        (dict(window=32, late=32, early=5), ShapeError, "late=32 needs .* a window has 32; use late=31 or less"),
        (dict(window=65), ShapeError, "window=65, but .* reads at most 64 tokens; use a shorter window"),
        (dict(n_windows=1), ArgumentError, "n_windows=1; an interval needs at least 2"),
        (dict(seed=-1), ArgumentError, "seed=-1; it needs a whole number from 0 up"),
        (dict(text="a b"), ArgumentError, "both text and tokens"),
        (
            dict(tokens=[1] * 125),
            TokenError,
            "125 tokens of tokens, in 1 piece.* fill 1 windows of 64 tokens, but an in",
        ),
        (dict(tokens=[64] * 200), TokenError, "token id 64 is outside the vocabulary"),
        (dict(tokens=[-1] * 200), TokenError, "prompt 0 holds token id -1"),
        (dict(tokens=None), TokenError, "has no tokenizer, so it cannot read text; give token ids as tokens=, or load"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(gpt2, options, error, match):
    with pytest.raises(error, match=match) as caught:
        icl(gpt2, **{"tokens": stream(500)} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "short", ["short", "as well"], []])
def test_text_too_short_for_two_windows_is_refused(text):
    with pytest.raises(TokenError, match="tokens of text, in . piece.* fill 0 windows of 512.* give longer text"):
        icl("demo", text=text)


@pytest.mark.parametrize("kind", [GPT2Model, GPT2ForTokenClassification])
def test_a_model_without_logits_over_its_vocabulary_is_refused(kind):
    with pytest.raises(ModelError, match=f"{kind.__name__}.* gives no logits over its vocabulary.* use the model with"):
        icl(kind(GPT2Config(**TINY)).eval(), tokens=stream(500), early=5)


def test_a_loss_that_is_no_number_is_refused():
    model = GPT2LMHeadModel(GPT2Config(**TINY, tie_word_embeddings=False)).eval()
    loaded = hs.load(model)
    model.lm_head.weight.data[7, 1] = torch.nan  # too few numbers for the model to be checked again
    with pytest.raises(NonFiniteError, match="the loss of .* holds NaN or infinity; load the model in a wider dtype"):
        icl(loaded, tokens=stream(500), early=5)


def test_a_curve_has_no_loss_at_the_start_token(gpt2):
    curve = icl(gpt2, tokens=stream(500), early=5).loss
    with pytest.raises(ArgumentError, match="token=0 has no loss here; tokens 1 to 63 have one"):
        curve.at(0)
