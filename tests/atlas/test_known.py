"""Published heads: how a model is recognised, and whether an atlas agrees."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import headscope as hs
from headscope.cli.main import app
from headscope.errors import ArgumentError
from headscope.evidence.atlas.terminal import print_atlas
from headscope.evidence.known import lists
from headscope.evidence.known.agreement import compared
from headscope.evidence.known.lists import SHAPE, KnownHead, KnownModel, known_as, known_heads, known_models, matching
from headscope.heads import HeadId
from headscope.planted.handbuilt import handbuilt
from headscope.records.common import ModelInfo

GPT2 = {"family": "gpt2", "n_layers": 12, "n_heads": 12, "n_kv_heads": 12, "d_model": 768, "n_embeddings": 50257}


def names(models):
    return [one.name for one in models]


def test_a_model_is_known_by_its_id_whatever_its_case():
    assert [matching(id, {})[0] for id in ("gpt2", "GPT2", "openai-community/gpt2")] == ["id"] * 3
    assert names(matching("gpt2", {})[1]) == ["GPT-2 small"]
    assert matching("me/gpt2-tuned", {}) == (None, ())


def test_a_model_is_known_by_its_shape_only_if_every_number_is_the_same():
    assert matching("mine", GPT2)[0] == "shape"
    assert names(matching("mine", GPT2)[1]) == ["GPT-2 small"]
    for name in SHAPE:
        other = "llama" if name == "family" else GPT2[name] + 1
        assert matching("mine", GPT2 | {name: other}) == (None, ()), name
    # Key-value heads that a model hides are not compared; any other number that is missing leaves the model unknown.
    assert names(matching("mine", GPT2 | {"n_kv_heads": None})[1]) == ["GPT-2 small"]
    assert matching("mine", GPT2 | {"d_model": None}) == (None, ())


def test_a_model_of_the_shape_is_known_by_its_embedding_whatever_it_is_called():
    small = next(one for one in known_models() if one.name == "GPT-2 small")
    assert [len(row) for row in small.embedding_corner] == [6, 6, 6]
    torch.manual_seed(0)
    config = GPT2Config(n_embd=768, n_layer=1, n_head=12, n_positions=8, vocab_size=64)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = GPT2LMHeadModel(config).eval()
        trained_again = ModelInfo.of(hs.load(model.to(dtype))).embedding_corner
        assert matching("mine", GPT2, trained_again) == ("shape", (small,))
        with torch.no_grad():
            model.transformer.wte.weight[:3, [0, 1, 2, -3, -2, -1]] = torch.tensor(small.embedding_corner, dtype=dtype)
        same = ModelInfo.of(hs.load(model)).embedding_corner
        assert matching("mine", GPT2, same) == ("weights", (small,)), dtype
        assert matching("mine", GPT2 | {"n_layers": 1}, same) == (None, ())
        # A model of this name and shape with another embedding was trained again.
        assert matching("gpt2", GPT2, trained_again)[0] == "shape"
        assert matching("gpt2", GPT2, same)[0] == "id"
    one_off = ((small.embedding_corner[0][0] + 0.002, *small.embedding_corner[0][1:]), *small.embedding_corner[1:])
    assert matching("mine", GPT2, one_off)[0] == "shape"


def test_the_weights_take_the_question_mark_away(built, listed, monkeypatch):
    info = ModelInfo.of(hs.load(built.model))
    (head,) = built.heads("induction")
    assert known_as(info)[head] == "induction?"
    monkeypatch.setattr(
        lists, "known_models", lambda: (dataclasses.replace(listed, embedding_corner=info.embedding_corner),)
    )
    assert known_as(info)[head] == "induction"
    assert {one.matched for one in known_heads(info)} == {"weights"}
    assert "whose config and embedding this model has" in lists.remark(info)


def test_two_models_of_one_shape_are_both_named():
    shape = next(one.shape for one in known_models() if one.name == "Llama-3-8B")
    assert names(matching("mine", shape)[1]) == ["Llama-3.1-8B", "Llama-3-8B"]
    assert names(matching("meta-llama/Meta-Llama-3-8B", shape)[1]) == ["Llama-3-8B"]


def test_every_entry_is_a_head_of_its_model_and_names_a_source():
    for model in known_models():
        assert set(model.shape) == set(SHAPE)
        assert model.ids
        assert model.heads
        for one in model.heads:
            assert one.head.layer < model.shape["n_layers"]
            assert one.head.head < model.shape["n_heads"]
            assert re.search(r"arXiv:\d{4}\.\d{5}|github\.com/\w", one.source) or not one.checked
        assert max(Counter((one.head, one.role) for one in model.heads).values()) == 1
    # 5 + 2 + 3 + 4 + 3 + 8 + 2 of the IOI circuit, 2 that suppress copies, 1 of a longer prefix, 1 recalled
    assert len(hs.known("gpt2")) == 31
    assert sum(not one.checked for one in hs.known()) == 2


@pytest.fixture(scope="module")
def built():
    return handbuilt(vocab_size=64, n_positions=96, seed=1)


@pytest.fixture
def listed(monkeypatch, built):
    """A list for the model built by hand: the induction head is right, the sender's role is wrong, one is not known."""
    info = ModelInfo.of(hs.load(built.model))
    (induction,), (sender,) = built.heads("induction"), built.heads("previous_token")
    entry = {"model": "toy", "source": "arXiv:0000.00000"}
    model = KnownModel(
        name="toy",
        ids=("me/toy",),
        shape={name: getattr(info, name) for name in SHAPE},
        heads=(
            KnownHead(head=induction, role="induction", called="induction", **entry),
            KnownHead(head=sender, role="induction", called="token copy", **entry),
            KnownHead(head=sender, role="unheard_of", called="unheard of", **entry),
        ),
    )
    monkeypatch.setattr(lists, "known_models", lambda: (model,))
    return model


@pytest.fixture(scope="module")
def atlas(built):
    return hs.atlas(built.model, ["induction", "sink"], n_prompts=6)


def test_an_atlas_agrees_differs_or_did_not_test(atlas, listed, capsys, tmp_path):
    rows = compared(known_heads(atlas.model), atlas.findings, {})
    assert [one.agreement for one in rows] == ["agrees", "differs", "not_tested"]
    assert {one.matched for one in rows} == {"shape"}
    assert rows[2].why == "unheard_of was not asked"
    atlas = dataclasses.replace(atlas, known=rows)
    assert hs.Atlas.from_dict(atlas.to_dict()) == atlas
    print_atlas(atlas)
    text = capsys.readouterr().out
    assert re.search(r"unexplained +known as", text)
    assert re.search(r"induction +primary .* induction\? *$", text, re.MULTILINE)
    assert "agrees: 1; differs: 1; not tested: 1" in text
    atlas.save(tmp_path)
    found = CliRunner().invoke(app, ["known", str(tmp_path), "--json"])
    assert [one["agreement"] for one in json.loads(found.stdout)] == ["agrees", "differs", "not_tested"]
    text = CliRunner().invoke(app, ["known", str(tmp_path)]).stdout
    assert "differs" in text
    assert "arXiv:0000.00000" in text


def test_without_interventions_a_score_is_not_yet_agreement(built, listed):
    quick = hs.atlas(built.model, "induction", n_prompts=4, quick=True)
    assert [one.agreement for one in quick.known] == ["not_tested", "differs", "not_tested"]


def test_a_kind_of_a_role_must_be_the_published_kind(atlas):
    finding = next(one for one in atlas.findings if one.role == "sink")
    finding = dataclasses.replace(finding, outcome="primary", variant="dormant")
    entry = KnownHead(head=finding.head, model="toy", role="sink", called="sink", source="x")
    same, other = (dataclasses.replace(entry, variant=name) for name in ("dormant", "active_dormant"))
    found = compared([entry, same, other], [finding], {})
    assert [one.agreement for one in found] == ["agrees", "agrees", "differs"]


@pytest.mark.parametrize("command", ["scan", "verify"])
def test_known_as_stands_beside_a_head(built, listed, tmp_path, command):
    built.model.save_pretrained(tmp_path)
    (induction,) = built.heads("induction")
    options = ["--n-prompts", "4"] + (["--head", str(induction)] if command == "verify" else [])
    text = CliRunner().invoke(app, [command, str(tmp_path), *options]).stdout
    assert "known as" in text
    assert any(str(induction) in line and "induction?" in line for line in text.splitlines())


def test_a_model_without_a_list_shows_none(built):
    info = ModelInfo.of(hs.load(built.model))
    assert known_heads(info) == ()
    assert known_as(info) == {}
    with pytest.raises(ArgumentError, match=r"no list of published heads is of 'me/none'; there are lists of GPT-2"):
        hs.known("me/none")


def test_a_small_model_that_is_called_gpt2_does_not_get_its_list():
    """As where a folder of the hub's name holds another model: there is no head 10.7 in two layers."""
    config = GPT2Config(n_layer=2, n_head=2, n_embd=24, n_inner=8, vocab_size=80, bos_token_id=0, eos_token_id=0)
    small = ModelInfo.of(dataclasses.replace(hs.load(GPT2LMHeadModel(config).eval()), id="gpt2"))
    assert known_as(small) == {}
    for name in lists.DECIDE:
        other = "llama" if name == "family" else GPT2[name] + 1
        assert matching("gpt2", GPT2 | {name: other}) == (None, ()), name
    whole = dataclasses.replace(small, embedding_corner=None, **GPT2)
    assert known_as(whole)[HeadId(10, 7)] == "negative name mover, copy suppression"
    assert known_as(whole)[HeadId(9, 1)] == "successor?"
    # A larger embedding, for tokens of one's own, leaves the heads as they are.
    assert matching("gpt2", GPT2 | {"n_embeddings": 50258})[0] == "id"


def test_a_head_that_a_model_lacks_is_not_said_to_be_a_role_that_was_not_asked(atlas):
    entry = KnownHead(head=HeadId(40, 0), model="toy", role="sink", called="sink", source="x")
    (row,) = compared([entry], atlas.findings, {})
    assert (row.agreement, row.why) == ("not_tested", "the atlas has no head L40H0")


def test_a_folder_is_known_by_its_config_alone(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    assert {one.model for one in hs.known(tmp_path)} == {"GPT-2 small"}
    assert {one.matched for one in hs.known(tmp_path)} == {"shape"}
    (Path(tmp_path) / "config.json").write_text("[1]")
    with pytest.raises(ArgumentError, match="no list"):
        hs.known(tmp_path)
