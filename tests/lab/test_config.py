"""Configurations: what is left out is the recipe's own, and what cannot be trained is refused before training."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM

import headscope as hs
from headscope.errors import ArgumentError
from headscope.training.config import NAMES, build_model, read_config, train_config
from headscope.training.demo_training import PHASES, SHAPE
from headscope.training.recipes import RECIPES, phase_sources, seeded_phases, try_sources

DOCS = Path(__file__).parents[2] / "docs"


def test_what_is_not_given_is_the_recipes_own():
    config = train_config(recipe="mixed", seed=3, device="cpu", steps=None)
    assert (config.layers, config.heads, config.d_model) == (2, 6, 192)
    assert (config.seed, config.steps, config.positions, config.dtype) == (3, 1800, "rotary", "float32")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"recipe": "copies"}, "recipe='copies' is not known; use one of copy, code, mixed, bigram"),
        ({"recipe": ["copy"]}, "recipe=['copy'] is not known; use one of copy"),
        ({"seed": 2**32}, "seed=4294967296 must be below 2^32 = 4294967296"),
        ({"d_modle": 64}, "'d_modle' is no setting of a training; did you mean d_model?"),
        ({"widgets": 64}, "'widgets' is no setting of a training; use recipe, layers"),
        ({"d_model": 65}, "d_model=65 does not divide among heads=4; use a multiple of 4"),
        ({"d_model": 60}, "makes heads of odd width 15, which rotary positions cannot turn; use a multiple of 8"),
        ({"layers": 0}, "layers=0 must be a whole number from 1 up"),
        (
            {"layers": 10**21},
            r"layers=10{21} of d_model=64 need [\d,.]+ GB to train, but [\d,.]+ GB are free; use fewer",
        ),
        ({"d_model": 2**40}, r"of d_model=1099511627776 need [\d,.]+ GB to train"),
        ({"heads": 2.0}, r"heads=2\.0 must be a whole number from 1 up"),
        ({"steps": True}, "steps=True must be a whole number"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0 up"),
        ({"checkpoint_every": 0}, "checkpoint_every=0 must be"),
        ({"positions": "alibi"}, "positions='alibi' must be rotary or learned"),
        ({"dtype": "float16"}, "dtype='float16' must be float32 or bfloat16"),
        ({"dtype": "bfloat16", "device": "cpu"}, "dtype='bfloat16' needs device='cuda'"),
        ({"device": "cuda:99"}, "device='cuda:99' is not there: torch sees"),
        ({"device": "the sky"}, "device='the sky' must be cpu or cuda"),
        ({"device": "meta"}, "device='meta' must be cpu or cuda"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(given, said):
    with pytest.raises(ArgumentError, match=re.escape(said) if "\\" not in said else said) as told:
        train_config(**{"device": "cpu"} | given)
    assert "\n" not in str(told.value)


def test_the_largest_seed_is_taken():
    assert train_config(seed=2**32 - 1, device="cpu").seed == 4294967295


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(ArgumentError, match="layers=0 must .*; steps=-1 must .*; positions='none' must"):
        train_config(layers=0, steps=-1, positions="none", device="cpu")


def test_learned_positions_allow_heads_of_odd_width():
    assert train_config(d_model=60, positions="learned", device="cpu").d_model == 60


def test_a_toml_file_uses_the_names_of_the_options(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('recipe = "bigram"\nd-model = 32\nout = "runs/mine"\n')
    assert read_config(path) == {"recipe": "bigram", "d_model": 32, "out": "runs/mine"}
    path.write_text("d_model = 32\n")
    with pytest.raises(ArgumentError, match=r"'d_model' of '.*run\.toml' is no setting of a training; did you mean d-"):
        read_config(path)
    path.write_text("steps = \n")
    with pytest.raises(ArgumentError, match="cannot be read as TOML"):
        read_config(path)
    with pytest.raises(ArgumentError, match="cannot be read as TOML: .*No such file"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(("positions", "kind"), [("rotary", LlamaForCausalLM), ("learned", GPT2LMHeadModel)])
def test_models_are_stock_attend_only_and_load(positions, kind, tmp_path):
    model = build_model(train_config(positions=positions, layers=1, heads=2, d_model=16, device="cpu"))
    assert type(model) is kind
    residual = torch.randn(1, 5, 16)
    blocks = model.model.layers if positions == "rotary" else model.transformer.h
    assert [bool(block.mlp(residual).any()) for block in blocks] == [False]
    assert not any(one.requires_grad for name, one in model.named_parameters() if ".mlp." in name)
    model.save_pretrained(tmp_path)
    loaded = hs.load(tmp_path)
    assert (loaded.check.support, loaded.n_layers, loaded.n_heads, loaded.bos_token_id) == ("exact", 1, 2, 0)


def test_mixed_is_what_the_demo_was_made_with():
    preset = RECIPES["mixed"]
    phases = seeded_phases(preset, seed=2, steps=preset.steps)
    assert [phase.recipe.seed for phase in phases] == [6, 7, 8]
    for phase, demo in zip(preset.phases, PHASES, strict=True):
        assert phase.recipe == demo["recipe"]
        assert dict(phase.batches) == {"text": (demo["text"],), "repeats": (demo["repeats"],)}
    assert {"n_layers": preset.layers, "n_heads": preset.heads, "d_model": preset.d_model}.items() <= SHAPE.items()


def test_every_recipe_draws_its_batches():
    stream = torch.arange(1, 1000)
    for preset in RECIPES.values():
        for phase in preset.phases:
            sources = phase_sources(phase, vocab_size=preset.vocab_size, stream=stream)
            try_sources(sources)
            for draw in sources.values():
                batch = draw(torch.Generator().manual_seed(1))
                assert batch.tokens.min() >= 0
                assert batch.tokens.max() < max(preset.vocab_size, len(stream) + 1)
                assert batch.counted.any(), "nothing would be learned from it"


def test_the_table_in_the_docs_is_the_recipes():
    table = re.findall(r"^\| `(\w+)` \| (.*) \|$", (DOCS / "train.md").read_text(), flags=re.MULTILINE)
    assert dict(table) == {
        name: f"{one.about} | {one.vocab_size} | {one.layers} x {one.heads} | {one.d_model} | {one.steps} | "
        f"{one.measure_every}"
        for name, one in RECIPES.items()
    }


def test_the_options_in_the_docs_are_the_settings():
    options = re.findall(r"^\| `--([\w-]+)` \|", (DOCS / "train.md").read_text(), flags=re.MULTILINE)
    assert set(NAMES) <= {name.replace("-", "_") for name in options}
