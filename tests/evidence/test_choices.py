"""Choices: the difference of two logits at the last token, in every world, and its gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import headscope as hs
from headscope.errors import NonFiniteError
from headscope.evidence.ablation.each import gradients
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, losses
from headscope.interventions.choices import KIND, Choices

HEADS = [HeadId(layer, head) for layer in range(2) for head in range(6)]


@pytest.fixture(scope="module")
def model():
    return hs.load("demo")


@pytest.fixture(scope="module")
def prompts():
    random = np.random.default_rng(3)
    return tuple(random.integers(1, 1000, length) for length in (7, 12, 7, 9))


@pytest.fixture(scope="module")
def asked():
    return Choices(first=np.asarray([5, 6, 7, 8]), second=np.asarray([105, 106, 107, 108]))


def ablator_of(model, method="zero"):
    return Ablator(model=model, method=method, corpus=None, positions=None, seed=0)


def test_it_is_the_difference_of_the_models_own_logits(model, prompts, asked):
    found = losses(ablator_of(model), prompts, asked, [frozenset()])
    assert set(found) == {KIND}
    for one, prompt in enumerate(prompts):
        with torch.no_grad():
            logits = model.hf(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1]
        wanted = float(logits[asked.first[one]] - logits[asked.second[one]])
        assert found[KIND][0, one] == pytest.approx(wanted, abs=1e-4)


def test_worlds_are_those_of_a_hook_on_the_output_projection(model, prompts, asked):
    head = HeadId(0, 2)
    found = losses(ablator_of(model), prompts, asked, [frozenset(), frozenset([head])])[KIND]
    attention = model.hf.model.layers[0].self_attn

    def silence(module, inputs):
        z = inputs[0].clone()
        z[..., 2 * attention.head_dim : 3 * attention.head_dim] = 0.0
        return (z,)

    handle = attention.o_proj.register_forward_pre_hook(silence)
    try:
        for one, prompt in enumerate(prompts):
            with torch.no_grad():
                logits = model.hf(input_ids=torch.from_numpy(prompt)[None]).logits[0, -1]
            wanted = float(logits[asked.first[one]] - logits[asked.second[one]])
            assert found[1, one] == pytest.approx(wanted, abs=1e-4)
    finally:
        handle.remove()
    assert np.abs(found[1] - found[0]).max() > 0.1


def test_some_prompts_in_another_order_are_the_same(model, prompts, asked):
    whole = losses(ablator_of(model), prompts, asked, [frozenset()])[KIND]
    some = losses(ablator_of(model), prompts, asked, [frozenset()], index=[3, 0])[KIND]
    np.testing.assert_allclose(some[0], whole[0, [3, 0]], atol=1e-5)


def test_equal_tokens_have_no_difference_and_swapped_ones_the_opposite(model, prompts, asked):
    same = Choices(first=asked.first, second=asked.first)
    assert not losses(ablator_of(model), prompts, same, [frozenset()])[KIND].any()
    turned = Choices(first=asked.second, second=asked.first)
    one, two = (losses(ablator_of(model), prompts, choice, [frozenset()])[KIND] for choice in (asked, turned))
    np.testing.assert_allclose(one, -two)


def test_the_gradient_sums_what_a_small_step_changes(model, prompts, asked):
    # Zero ablation a thousandth of the way: z (1 - 0.001).
    estimates = gradients(ablator_of(model), prompts, asked, HEADS)

    class Slightly(Ablator):
        def edited(self, attention, mask, substitute):
            whole = super().edited(attention, mask, substitute)
            return attention.z + 1e-3 * (whole - attention.z)

    slight = Slightly(model=model, method="zero", corpus=None, positions=None, seed=0)
    found = losses(slight, prompts, asked, [frozenset(), *(frozenset([head]) for head in HEADS)])[KIND]
    np.testing.assert_allclose((found[1:] - found[0]) / 1e-3, estimates, atol=0.05 + 0.02 * np.abs(estimates).max())


def test_what_is_not_a_number_is_refused(prompts, asked):
    broken = hs.load("demo")
    with torch.no_grad():
        broken.hf.lm_head.weight[5] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        losses(ablator_of(broken), prompts, asked, [frozenset()])
