"""What a live page begins with, ids in place of words, and every head on a text at a glance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from pytest import approx

import headscope as hs
from headscope.errors import TokenError
from headscope.explore.reading import MOST_DOTS, Reader
from headscope.explore.starting import SENTENCE, ids_of, starts


@pytest.fixture(scope="module")
def bare(reader):
    """The same model without a tokenizer, as `headscope train` leaves one."""
    return dataclasses.replace(reader.model, tokenizer=None)


def test_a_model_of_words_begins_with_a_sentence_and_any_other_with_random_tokens(reader, bare):
    first, *others = starts(reader.model)
    assert first.text == SENTENCE
    assert [one.title for one in others] == ["keys and values", "repeated random tokens"]
    for one in starts(bare):
        tokens = Reader(bare).tokens(one.text)
        assert len(set(tokens.tolist())) < len(tokens) - 3  # it repeats

    class Bytes:
        """A token for each byte."""

        bos_token_id, all_special_ids = None, ()
        __call__ = staticmethod(lambda text, **options: {"input_ids": list(text.encode())})
        __len__ = staticmethod(lambda: 256)
        decode = staticmethod(lambda ids, **options: bytes(ids).decode(errors="replace"))

    assert starts(dataclasses.replace(reader.model, tokenizer=Bytes()))[0].title == "repeated random tokens"


def test_ids_are_read_after_their_mark_and_alone_where_there_is_no_tokenizer(reader, bare):
    assert ids_of(reader.model, "ids: 5, 17 9") == [5, 17, 9]
    assert ids_of(reader.model, "5 17 9") is None  # words of a model that reads words
    assert ids_of(bare, "5 17 9") == [5, 17, 9]
    assert ids_of(reader.model, " " * 20_000 + "x") is None  # in time that grows with the text, not its square
    with pytest.raises(TokenError, match="has no tokenizer.*ids: 5 17 9 5"):
        ids_of(bare, "the cat")
    with pytest.raises(TokenError, match="outside the vocabulary"):
        Reader(bare).tokens("ids: 5 99999")
    reading = Reader(bare).read("ids: 5 17 9 5")
    assert [(one.id, one.text) for one in reading.tokens] == [(5, None), (17, None), (9, None), (5, None)]
    assert reading.clean == approx(reader.read("ids: 5 17 9 5").clean)


def test_the_stripe_of_a_text_is_its_induction_score(reader):
    text = starts(reader.model)[2].text
    found = reader.glance(text)
    scan = hs.scan(reader.model, probe=hs.probe_tokens([reader.tokens(text).tolist()]), detectors=["induction"])
    wanted = {score.head: score for score in scan.scores}
    assert len(found.heads) == 12
    for one in found.heads:
        assert one.stripe == approx(wanted[one.head].mean, abs=1e-5)
        assert one.chance == approx(wanted[one.head].chance, abs=1e-5)
    assert max(found.heads, key=lambda one: one.stripe).stripe > 0.5


def test_small_patterns_are_the_patterns_and_large_ones_their_largest_places(reader):
    found = reader.glance("a b a b")
    for one in found.heads:
        assert (one.pattern == reader.pattern("a b a b", one.head)).all()
    long = "ids: " + " ".join(str(5 + n % 40) for n in range(2 * MOST_DOTS))
    one = reader.glance(long).heads[4]
    whole = np.zeros((2 * MOST_DOTS, 2 * MOST_DOTS), dtype=np.uint8)
    whole[np.tril_indices(2 * MOST_DOTS)] = reader.pattern(long, one.head)
    squares = whole.reshape(MOST_DOTS, 2, MOST_DOTS, 2).max(axis=(1, 3))  # two by two places each
    assert (one.pattern == squares[np.tril_indices(MOST_DOTS)]).all()


def test_a_text_in_which_nothing_repeats_has_no_stripe(reader):
    found = reader.glance("ids: 5 6 7 8")
    assert found.targets == ()
    assert {one.stripe for one in found.heads} == {None}


def test_bytes_of_one_character_are_shown_together(reader):
    words = reader.read("a 木 b").tokens
    parts = [one for one in words if one.part is not None]
    assert [one.part for one in parts] == [(1, 3), (2, 3), (3, 3)]
    assert {one.text for one in parts} == {"木"}
    assert all("\ufffd" not in one.text for one in words)
