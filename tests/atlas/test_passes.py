"""What the atlas saves: passes that are shared or begun later give what one intervention after the other gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest import approx
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs
from headscope.evidence.atlas.runner import RoleRunner
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, losses
from headscope.interventions.choices import Choices
from headscope.interventions.knockout import Knockout
from headscope.interventions.patch import ActivationPatch
from headscope.interventions.while_ablated import WhileAblated
from headscope.probes.probe import Probe

N = 4
GONE = (HeadId(0, 1), HeadId(1, 0), HeadId(2, 2))
TESTED = (HeadId(0, 1), HeadId(1, 2), HeadId(1, 3), HeadId(2, 0))


@pytest.fixture(scope="module")
def runner():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=80,
        n_positions=96,
        n_embd=32,
        n_layer=3,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    return RoleRunner(hs.load(GPT2LMHeadModel(config).double().eval()), n_prompts=N)


@pytest.fixture(scope="module")
def asked(runner):
    random = np.random.default_rng(0)
    prompts, sources, others = (tuple(random.integers(1, 80, (N, 9))) for _ in range(3))
    return (
        prompts,
        sources,
        Choices(first=random.integers(1, 80, N), second=random.integers(1, 80, N)),
        Probe(prompts=others, controls=None, settings={}),
    )


@pytest.mark.parametrize("method", ["zero", "mean", "resample"])
def test_worlds_that_start_from_another_world_give_what_they_give(runner, asked, method):
    prompts, _, choices, corpus = asked
    probe = Probe(prompts=prompts, controls=None, settings={})
    ablator = Ablator.of(runner.model, probe, method=method, corpus=corpus)
    base = frozenset(GONE)
    worlds = [base, base - {GONE[2]}, base | {HeadId(1, 3)}, frozenset(), frozenset([HeadId(2, 0)])]
    plain = losses(ablator, prompts, choices, worlds)["difference"]
    assert losses(ablator, prompts, choices, worlds, base=base)["difference"] == approx(plain, abs=1e-9)
    assert len(np.unique(plain.round(6), axis=0)) == len(worlds)  # five worlds, of which none equals another


def test_heads_that_lose_places_of_their_own_lose_them_together_as_alone(runner):
    prompts = runner.held_out.prompts
    places = {
        head: [np.asarray([[at, at - back] for at in range(back, len(prompt))]) for prompt in prompts]
        for back, head in enumerate(TESTED, 1)
    }
    together = runner.dropped_places(places)
    for head in TESTED:
        alone = Knockout(model=runner.model, places=places[head], how="drop")
        rows = losses(alone, prompts, runner.copy_queries, [frozenset(), frozenset([head])])["second_copy"]
        assert together[head]["second_copy"] == approx(rows[1] - rows[0], abs=1e-9)
        assert np.abs(rows[1] - rows[0]).max() > 1e-6


def test_a_patch_while_others_are_ablated_is_that_of_each_head_by_itself(runner, asked):
    prompts, sources, choices, corpus = asked
    found = runner.moved(TESTED, prompts, sources, choices, without=GONE, corpus=corpus)
    probe = Probe(prompts=prompts, controls=None, settings={})
    ablator = Ablator.of(runner.model, probe, method="mean", corpus=corpus)
    for head in TESTED:
        others = frozenset(GONE) - {head}
        patched = ActivationPatch(model=runner.model, sources=sources, n_last=1)
        both = WhileAblated(ablator=ablator, patched=patched, heads=frozenset([head]))
        rows = losses(both, prompts, choices, [others, others | {head}])["difference"]
        assert found[head] == approx(rows[0] - rows[1], abs=1e-9)
        assert np.abs(found[head]).max() > 1e-6


def test_what_moves_directly_is_measured_against_heads_held_above(runner, asked):
    prompts, sources, choices, _ = asked
    found = runner.moved_directly(TESTED, prompts, sources, choices)
    held = ActivationPatch(model=runner.model, sources=prompts, n_last=len(prompts[0]))
    for head in TESTED:
        above = frozenset(one for one in runner.heads if one.layer > head.layer)
        patched = ActivationPatch(model=runner.model, sources=sources, n_last=1)
        both = WhileAblated(ablator=held, patched=patched, heads=frozenset([head]))
        rows = losses(both, prompts, choices, [above, above | {head}])["difference"]
        assert found[head] == approx(rows[0] - rows[1], abs=1e-9)
        assert np.abs(found[head]).max() > 1e-6


def test_what_a_head_attends_to_is_the_same_whether_or_not_it_is_ablated_itself(runner):
    prompts = runner.held_out.prompts
    places = {"all": [np.stack(np.tril_indices(len(prompt), -3), axis=1) for prompt in prompts]}
    ablator = runner.copy_ablators["mean"]
    together = runner.attention(prompts, places, ablator=ablator, without=GONE)["all"]
    for head in GONE:
        others = [one for one in GONE if one != head]
        alone = runner.attention(prompts, places, ablator=ablator, without=others)["all"]
        at = runner.heads.index(head)
        assert together[:, at] == approx(alone[:, at], abs=1e-9)


def test_what_roles_share_of_a_head_is_computed_once(runner):
    calls = []

    def compute(heads):
        calls.append(tuple(heads))
        return {head: head.layer for head in heads}

    assert runner.by_head("layers", TESTED[:2], compute) == {HeadId(0, 1): 0, HeadId(1, 2): 1}
    assert runner.by_head("layers", TESTED[1:3], compute) == {HeadId(1, 2): 1, HeadId(1, 3): 1}
    assert calls == [TESTED[:2], (HeadId(1, 3),)]


def test_a_patch_may_leave_the_last_positions_as_they_are(runner, asked):
    prompts, sources, _, _ = asked
    patch = ActivationPatch(model=runner.model, sources=sources, n_last=2, own_last=1)
    substitute = patch.substitutes(range(N), len(prompts[0]))
    theirs = {}

    def keep(attention):
        theirs[attention.layer] = attention.z.clone()

    def compare(attention):
        mask = torch.zeros(1, attention.n_heads, dtype=torch.bool)
        mask[0, 1] = True
        expected = attention.z.clone()
        expected[:, -2, 1] = theirs[attention.layer][:, -2, 1]
        assert not torch.equal(expected, attention.z)
        assert torch.equal(patch.edited(attention, mask, substitute(attention)), expected)

    for rows, visit in ((sources, keep), (prompts, compare)):
        runner.model.run(torch.from_numpy(np.stack(rows)), visit)
