"""`headscope compare`: the document is the API's, the words are those of what changed, bad input is one line."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs

SMALL = ("--n-prompts", "4", "--period", "12")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two random models of one shape."""
    folder = tmp_path_factory.mktemp("models")
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=97, n_positions=64, bos_token_id=0, eos_token_id=0)
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        GPT2LMHeadModel(config).save_pretrained(folder / name)
    return folder / "one", folder / "two"


@pytest.fixture(scope="module")
def store(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "s"
    hs.sweep([str(one) for one in pair], folder, settings={"scan": {"n_prompts": 4, "period": 12}})
    return folder


def timeless(document):
    return {name: value for name, value in document.items() if name != "timing"}


def test_the_document_is_that_of_the_api_and_is_saved(headscope, pair, tmp_path):
    ran = headscope("compare", *pair, *SMALL, "--seed", 3, "--out", tmp_path, "--json")
    assert (ran.code, ran.err) == (0, "")
    wanted = hs.compare(*pair, n_prompts=4, period=12, seed=3).to_dict()
    assert timeless(json.loads(ran.out)) == timeless(json.loads(json.dumps(wanted)))
    assert hs.Comparison.load(tmp_path).to_dict() == json.loads(ran.out)


def test_the_terminal_names_the_files_and_how_differences_were_made(headscope, pair, tmp_path):
    ran = headscope("compare", *pair, *SMALL, "--out", tmp_path)
    assert ran.code == 0
    assert f"Results: {tmp_path / 'compare.json'} and {tmp_path / 'compare.parquet'}" in " ".join(ran.out.split())
    assert "Paired by prompt: " in ran.out


def test_a_dtype_for_each_model_is_that_models(headscope, pair):
    one = pair[0]
    ran = headscope("compare", one, one, *SMALL, "--dtype", "float32", "--dtype", "float64", "--json")
    assert any("float32" in said and "float64" in said for said in json.loads(ran.out)["pairs"][0]["differ"])


def test_a_store_is_compared_without_its_models(headscope, store):
    ran = headscope("compare", store, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert timeless(json.loads(ran.out)) == timeless(json.loads(hs.open_store(store).compare().to_json()))


def test_what_cannot_be_compared_is_one_line(headscope, pair, store):
    one, two = pair
    for arguments, told in (
        ([one], "1 model was given; compare needs at least two"),
        ([one, two, "--n-prompts", 1], "--n-prompts 1; differences need intervals"),
        ([one, two, "--dtype", "float32", "--dtype", "float64", "--dtype", "float32"], "3 of --dtype for 2 models"),
        ([store, "--verify"], "--verify needs the models; a store holds scans"),
    ):
        ran = headscope("compare", *arguments)
        assert (ran.code, ran.out) == (2, "")
        assert told in ran.err
        assert ran.err.count("\n") == 1
