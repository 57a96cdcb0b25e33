"""What is read in a text, held against transformers' own eager attention with hooks."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytest import approx

import headscope as hs
from headscope.errors import ArgumentError, TokenError
from headscope.explore.reading import TOP, Reader
from headscope.explore.starting import SENTENCE
from headscope.heads import HeadId
from headscope.probes import random_tokens
from headscope.records.codec import encode

OFF = ["L1H0", "L0H4"]


def losses_of(logits, tokens):
    return torch.nn.functional.cross_entropy(logits[:-1], torch.as_tensor(tokens)[1:], reduction="none").tolist()


def test_losses_and_probabilities_are_those_of_the_model(reader, text, eager):
    read = reader.read(text)
    tokens = reader.tokens(text)
    logits = eager.run(tokens).logits[0]
    assert [one.id for one in read.tokens] == tokens.tolist()
    assert "".join(one.text for one in read.tokens[1:]) == text
    assert read.clean == approx(losses_of(logits, tokens), abs=2e-4)
    assert read.mean_clean == approx(np.mean(losses_of(logits, tokens)), abs=2e-4)
    assert (read.ablated, read.delta_loss_nats, read.off) == (None, None, ())
    probabilities = logits.softmax(-1)
    for position, options in enumerate(read.next):
        best = probabilities[position].topk(TOP)
        given = {one.id: one.clean for one in options}
        assert set(given) == {*best.indices.tolist(), *tokens[position + 1 : position + 2].tolist()}
        assert given == approx({one: float(probabilities[position, one]) for one in given}, abs=1e-4)
        assert [one.clean for one in options] == sorted(given.values(), reverse=True)
        assert all(one.ablated is None for one in options)


def test_zero_puts_nothing_in_place_of_a_head(reader, text, eager):
    read = reader.read(text, off=OFF, method="zero")
    logits = eager.run(reader.tokens(text), {(1, 0): 0.0, (0, 4): 0.0}).logits[0]
    assert read.off == (HeadId(0, 4), HeadId(1, 0))
    assert read.ablated == approx(losses_of(logits, reader.tokens(text)), abs=2e-4)
    assert read.delta_loss_nats == approx(np.mean(read.ablated) - np.mean(read.clean), abs=1e-6)
    assert read.delta_loss_nats > 0.5
    probabilities = logits.softmax(-1)
    for position, options in enumerate(read.next):
        assert {one.id: one.ablated for one in options} == approx(
            {one.id: float(probabilities[position, one.id]) for one in options}, abs=1e-4
        )
        assert set(probabilities[position].topk(TOP).indices.tolist()) <= {one.id for one in options}


def test_mean_puts_the_mean_over_random_tokens_in_place_of_a_head(reader, text, eager):
    tokens = reader.tokens(text)
    logits = eager.run(tokens, eager.means(reader, [(1, 0), (0, 4)], len(tokens))).logits[0]
    assert reader.read(text, off=OFF, method="mean").ablated == approx(losses_of(logits, tokens), abs=5e-4)


def test_the_strongest_induction_head_lowers_the_repeated_token(reader):
    # The idea of the page, in numbers: without it the token that is due becomes less probable.
    strongest = hs.scan(reader.model).heads("induction")[0].head
    due = reader.read(SENTENCE, off=[strongest], method="mean").next[-1][0]
    assert due.text == "mp"
    assert due.clean > 0.5
    assert due.ablated < 0.2 * due.clean


def test_a_head_off_in_place_of_itself_changes_nothing(reader, text, eager, monkeypatch):
    # z replaced by the z that is there: the no-op restores the losses.
    own = eager.z(reader.tokens(text), 1)
    stand_in = SimpleNamespace(
        substitutes=lambda index, length: lambda attention: own[None],
        edited=lambda attention, mask, value: torch.where(mask[:, None, :, None], value, attention.z),
    )
    monkeypatch.setattr(reader, "_ablator", lambda tokens, method: stand_in)
    read = reader.read(text, off=["L1H0"])
    assert read.ablated == approx(read.clean, abs=1e-4)


@pytest.mark.parametrize("off", [[], ["L0H4"]])
def test_looks_and_patterns_are_the_models_own(reader, text, eager, off):
    tokens = reader.tokens(text)
    attentions = eager.run(tokens, {(0, 4): 0.0} if off else None).attentions
    looks = reader.looks(text, 30, 10, off=off, method="zero")
    assert len(looks) == 12
    assert [one.attention for one in looks] == sorted((one.attention for one in looks), reverse=True)
    for one in looks:
        assert one.attention == approx(float(attentions[one.head.layer][0, one.head.head, 30, 10]), abs=1e-5)
        assert one.chance == approx(1 / 31)
    kept = reader.pattern(text, "L1H1", off=off, method="zero") / 255
    wanted = attentions[1][0, 1].numpy()[np.tril_indices(len(tokens))]
    assert np.abs(kept - wanted).max() <= 1 / 510 + 1e-5


def test_without_the_previous_token_head_the_stripe_is_gone(reader, text):
    query = len(reader.tokens(text)) - 1
    tokens = reader.tokens(text).tolist()
    key = tokens[:query].index(tokens[query]) + 1
    clean = {one.head: one.attention for one in reader.looks(text, query, key)}
    blind = {one.head: one.attention for one in reader.looks(text, query, key, off=["L0H4"])}
    assert clean[HeadId(1, 1)] > 0.4
    assert blind[HeadId(1, 1)] < 0.1


def test_a_window_hides_keys_and_chance_says_so():
    from benchmarks.tiny import tiny_causal_lm

    model = dataclasses.replace(hs.load(tiny_causal_lm("mistral")), tokenizer=Numbers())
    reader = Reader(model)
    assert model.hf.config.sliding_window == 8
    looks = reader.looks("1 2 3 4 5 6 7 8 9 10 11 12", 11, 2)
    assert {(one.attention, one.chance) for one in looks} == {(0.0, 0.0)}
    near = reader.looks("1 2 3 4 5 6 7 8 9 10 11 12", 11, 6)
    assert {one.chance for one in near} == {1 / 8}


class Numbers:
    """A tokenizer that reads numbers, and nothing else."""

    all_special_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    def __call__(self, text, **options):
        return {"input_ids": [int(one) for one in text.split() if one.isdigit()]}

    def __len__(self):
        return 64

    def decode(self, ids):
        return " ".join(str(int(one)) for one in ids)


def test_looped_models_have_a_head_for_each_call():
    from benchmarks.tiny import tiny_causal_lm

    reader = Reader(dataclasses.replace(hs.load(tiny_causal_lm("hrm_text")), tokenizer=Numbers()))
    assert max(one.call for one in reader.heads) > 0
    assert {one.head for one in reader.looks("1 2 3 4", 3, 1)} == set(reader.heads)
    later = next(one for one in reader.heads if one.call)
    assert reader.read("1 2 3 4", off=[later]).delta_loss_nats != 0
    with pytest.raises(ArgumentError, match="do not run that often in one pass"):
        reader.read("1 2 3 4", off=[HeadId(later.layer, 0, 99)])


def test_one_token_foretells_what_comes_after_it():
    from benchmarks.tiny import tiny_causal_lm

    read = Reader(dataclasses.replace(hs.load(tiny_causal_lm("gpt2")), tokenizer=Numbers())).read("5", off=["L0H0"])
    assert (read.clean, read.ablated, read.mean_clean, read.delta_loss_nats) == ((), (), None, None)
    assert len(read.next) == 1
    assert len(read.next[0]) >= TOP


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("  \n", "the text is empty"),
        ("x" * 20_001, "the text has 20001 characters; at most 20000 are read"),
        (" the" * 600, "the text has 601 tokens; at most 512 are read"),
        ("a\ud800", "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_read_is_refused(reader, text, message):
    with pytest.raises(TokenError, match=message):
        reader.read(text)


def test_a_text_may_be_as_long_as_the_context(reader):
    read = reader.read(" the" * 511, off=["L1H0"])
    assert len(read.tokens) == reader.model.max_tokens == 512
    assert len(read.ablated) == 511


def test_a_tokenizer_that_gives_nothing_and_a_model_without_one_are_refused(reader):
    from benchmarks.tiny import tiny_causal_lm

    model = hs.load(tiny_causal_lm("gpt2"))
    with pytest.raises(TokenError, match="has no tokenizer"):
        Reader(model).read("one two")
    with pytest.raises(TokenError, match="is empty"):
        Reader(dataclasses.replace(model, tokenizer=Numbers())).read("no number")
    started = Numbers()
    started.bos_token_id = 7
    with pytest.raises(TokenError, match="finds no token in this text"):
        Reader(dataclasses.replace(model, tokenizer=started)).read("no number")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda r: r.read("a b", off=["L9H9"]), "demo has no head L9H9"),
        (lambda r: r.read("a b", off=["nonsense"]), "'nonsense' is not a head"),
        (lambda r: r.read("a b", off=["L1H0#1"]), "do not run that often"),
        (lambda r: r.pattern("a b", "L2H0"), "demo has no head L2H0"),
        (lambda r: r.looks("a b", 1, 9), "the text has no token 9"),
        (lambda r: r.looks("a b", -1, 0), "the text has no token -1"),
        (lambda r: r.looks("a b", 1, 2), "token 1 comes before token 2"),
        (lambda r: r.writes("a b", 3), "the text has no token 3"),
    ],
)
def test_heads_and_tokens_that_are_not_there_are_refused(reader, ask, message):
    with pytest.raises(ArgumentError, match=message):
        ask(reader)


def test_what_is_given_can_be_written_as_json(reader, text):
    read = encode(reader.read(text, off=OFF))
    assert read["off"] == [{"layer": 0, "head": 4}, {"layer": 1, "head": 0}]
    assert encode(reader.looks(text, 3, 1))[0].keys() == {"layer", "head", "attention", "chance"}


def test_random_tokens_do_not_repeat_and_fill_their_length(reader):
    probe = random_tokens(reader.model, n_prompts=3, length=512, seed=1)
    assert [len(one) for one in probe.prompts] == [512] * 3
    assert all(len(set(one.tolist())) == 512 and one[0] == 0 for one in probe.prompts)
    assert not np.array_equal(probe.prompts[0], probe.prompts[1])
