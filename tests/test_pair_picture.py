"""The picture of a clean and a corrupt prompt: right where the answer is known, and data stays data."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import numpy as np
import pytest

import headscope as hs
from headscope.errors import ArgumentError
from headscope.planted.handbuilt import handbuilt
from headscope.probes.corrupt import corrupt_pairs
from headscope.render.pair import MOST_TOKENS, corrupt_pair_picture

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def built():
    return handbuilt(vocab_size=64, n_positions=64)


@pytest.fixture(scope="module")
def model(built):
    return hs.load(built.model)


@pytest.fixture(scope="module")
def pair(model):
    (pair,) = corrupt_pairs(hs.repeated_tokens(model, n_prompts=1, period=8, jitter=False))
    return pair


def texts(picture):
    return ["".join(one.itertext()) for one in ET.fromstring(picture.svg).iter(f"{SVG}text")]


def test_a_perfect_induction_head_finds_the_key_in_the_clean_prompt_alone(built, model, pair):
    (head,) = built.heads("induction")
    picture = corrupt_pair_picture(model, pair, head)
    clean, corrupt = (one for one in texts(picture) if "puts" in one)
    assert clean == f"clean: from the query, {head} puts 1.00 of its attention on the key"
    assert corrupt == f"corrupt: from the query, {head} puts 0.00 of its attention on the key"
    paths = [one for one in ET.fromstring(picture.svg).iter(f"{SVG}path") if one.get("fill") == "none"]
    dashed = [one.get("stroke-dasharray") is not None for one in paths]
    assert dashed[0] is False, "the clean prompt's one arrow"
    assert sum(dashed) == 1, "and where it was, in the corrupt prompt"
    changed = [int(token) for token in (pair.clean[pair.changed], pair.corrupt[pair.changed])]
    assert changed[0] == pair.clean[pair.query] != changed[1]
    labels = [one.split("<")[0] for one in texts(picture)]
    assert {"= query", "changed"} <= set(labels)


def test_a_previous_token_head_looks_one_back_in_both(built, model, pair):
    (head,) = built.heads("previous_token")
    assert [one.split("puts ")[1][:4] for one in texts(corrupt_pair_picture(model, pair, head)) if "puts" in one] == [
        "0.00",
        "0.00",
    ]


def test_tokens_are_data(model, pair):
    class Nasty:
        all_special_ids: tuple[int, ...] = ()
        bos_token_id = None

        def __len__(self):
            return 64

        def decode(self, ids):
            return ["</text><script>alert(1)</script>", "\u202egnp", "a&b", ""][ids[0] % 4]

    nasty = hs.load(model.hf, tokenizer=Nasty())
    svg = ET.fromstring(corrupt_pair_picture(nasty, pair, "L1H0").svg)
    assert {one.tag.removeprefix(SVG) for one in svg.iter()} == {"svg", "path", "rect", "text", "tspan", "title"}


def test_what_cannot_be_drawn_is_refused(model, pair):
    with pytest.raises(ArgumentError, match="the same; make it with change='before_key'"):
        corrupt_pair_picture(model, dataclasses.replace(pair, changed=None), "L1H0")
    long = dataclasses.replace(pair, clean=np.arange(MOST_TOKENS + 1))
    with pytest.raises(ArgumentError, match=f"33 tokens do not fit side by side; at most {MOST_TOKENS}"):
        corrupt_pair_picture(model, long, "L1H0")
    with pytest.raises(ArgumentError, match="L9H9"):
        corrupt_pair_picture(model, pair, "L9H9")
