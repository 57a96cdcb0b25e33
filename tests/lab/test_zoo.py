"""Trained heads, not built ones: what headscope finds in the models of the zoo.

The models were written by `python -m headscope.planted.zoo --out tests/lab/zoo`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

import headscope as hs
from headscope.planted import zoo
from headscope.planted.zoo import COPIES, FAMILIES, N_POSITIONS, VOCAB_SIZE, trained_family
from headscope.training.demo_training import BOS_TOKEN_ID
from headscope.training.loop import Recipe
from headscope.training.recipes import Phase

ZOO = Path(__file__).parent / "zoo"
FORMED = [name for name in (*COPIES, *FAMILIES) if name != "one-layer"]


@cache
def model(name):
    return hs.load(ZOO / name, dtype="float32")


@cache
def probe(name):
    """Within reach of every model: `gpt2` learns positions up to 80."""
    return hs.repeated_tokens(model(name), n_prompts=16, period=24)


@cache
def scanned(name):
    return hs.scan(model(name), probe=probe(name))


@cache
def verified(name):
    return hs.verify(model(name), probe=probe(name))


def test_the_zoo_is_whole_and_small():
    assert {path.name for path in ZOO.iterdir()} == {*COPIES, *FAMILIES}
    assert sum(path.stat().st_size for path in ZOO.rglob("*")) <= 3_000_000
    assert all(model(name).check.support == "exact" for name in (*COPIES, *FAMILIES))


@pytest.mark.parametrize("name", FAMILIES)
def test_families_read_text_and_have_mlps_that_act(name):
    loaded = model(name)
    assert len(loaded.tokenizer) == loaded.n_embeddings == VOCAB_SIZE
    assert loaded.max_tokens == N_POSITIONS
    assert loaded.tokenizer("def f(x):\n    return x")["input_ids"][0] == BOS_TOKEN_ID
    matrices = [weight for key, weight in loaded.hf.named_parameters() if ".mlp." in key and weight.ndim == 2]
    assert matrices
    assert all(weight.abs().max() > 0.1 for weight in matrices)


@pytest.mark.parametrize("name", FORMED)
def test_a_scan_finds_the_learned_heads_in_their_layers(name):
    induction, previous = (scanned(name).heads(role) for role in ("induction", "previous_token"))
    assert induction
    assert {score.head.layer for score in induction} == {1}
    assert previous
    assert previous[0].head.layer == 0


@pytest.mark.parametrize("name", [name for name in COPIES if name != "one-layer"])
def test_three_seeds_of_copy_learn_sharp_heads_in_other_places(name):
    scan = hs.scan(model(name), detectors=["induction", "previous_token"])
    assert scan.ranked("induction")[0].mean > 0.85
    assert scan.ranked("previous_token")[0].mean > 0.6


def test_a_scan_of_one_trained_layer_finds_none():
    scan = hs.scan(model("one-layer"), detectors=["induction"])
    assert scan.heads("induction") == []
    assert scan.ranked("induction")[0].mean < 0.1


@pytest.mark.parametrize("name", FORMED)
def test_verdicts_name_induction_and_without_it_the_second_copy_is_lost(name):
    result = verified(name)
    found = [*result.of("induction"), *result.of("redundant_induction")]
    assert found
    heads = [one.head for one in found]
    removed = hs.ablate(model(name), heads, probe=probe(name))
    assert removed.delta_loss_nats.mean > 1
    assert removed.delta_loss_nats.ci95[0] > 0.5


@pytest.mark.parametrize("name", FORMED)
def test_a_previous_token_head_is_the_sender(name):
    circuit = hs.trace_circuit(model(name), [scanned(name).heads("induction")[0].head], probe=probe(name))
    assert circuit.edges
    strongest = max(circuit.edges, key=lambda edge: edge.share)
    assert strongest.sender.layer == 0
    previous = [score.head for score in scanned(name).ranked("previous_token")[:2]]
    assert strongest.sender in previous


def test_the_command_writes_models_that_load(tmp_path, monkeypatch):
    # Two steps on two files: everything but the time.
    texts = [Path(torch.__file__).read_text(), Path(pytest.__file__).read_text()]
    monkeypatch.setattr(zoo, "stdlib_sources", lambda held_out: texts)
    monkeypatch.setattr(zoo, "COPY_STEPS", 2)
    for name in ("PHASES", "LEARNED_PHASES"):
        phase = getattr(zoo, name)[0]
        monkeypatch.setattr(zoo, name, [replace(phase, recipe=replace(phase.recipe, n_steps=2, decay_steps=0))])
    zoo.main(["--out", str(tmp_path), "one-layer", "gpt2"])
    assert {path.name for path in tmp_path.iterdir()} == {"one-layer", "gpt2"}
    for name in ("one-layer", "gpt2"):
        made, kept = hs.load(tmp_path / name), model(name)
        assert (made.family, made.n_layers, made.n_heads) == (kept.family, kept.n_layers, kept.n_heads)
        assert made.dtype == torch.float16


def test_training_a_family_is_the_command_that_made_it(tmp_path):
    # The real functions for two steps: everything but the time.
    stream = torch.arange(1, 400)
    phase = Phase(
        recipe=Recipe(n_steps=2, learning_rate=1e-3),
        batches={
            "text": ({"n_prompts": 2, "n_tokens": 16},),
            "repeats": ({"n_prompts": 2, "n_tokens": 20, "period": (3, 6), "gap": (0, 2)},),
        },
    )
    for name in FAMILIES:
        lines: list[str] = []
        made = trained_family(name, stream, lines.append, phases=[phase])
        assert type(made) is type(model(name).hf)
        assert {key: value.shape for key, value in made.state_dict().items()} == {
            key: value.shape for key, value in model(name).hf.state_dict().items()
        }
        assert len(lines) == 1
