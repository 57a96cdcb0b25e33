"""Patching: the right head at the right places, and nothing else."""

from __future__ import annotations

import numpy as np
import torch
from pytest import approx

from headscope.evidence.ablation.each import gradients
from headscope.evidence.behavior.measure import ContrastRunner, ForwardCounter
from headscope.heads import HeadId
from headscope.interventions.ablation import losses
from headscope.interventions.choices import KIND, Choices
from headscope.interventions.patch import ActivationPatch
from headscope.planted.deferring import AblatedHeads
from headscope.probes.pairs import read_pairs

HEAD = HeadId(1, 0)


def bench_of(model, count=24):
    reading = read_pairs(model, AblatedHeads.of(0).facts())
    return ContrastRunner(model, reading, ForwardCounter(0)), np.arange(count)


def test_patching_from_the_prompt_itself_changes_nothing(planted):
    model = planted("deferring")
    runner, _ = bench_of(model)
    tokens = runner.reading.tokens["prompt"][:8]
    asked = Choices(first=runner.reading.answer["prompt"][:8], second=runner.reading.other["prompt"][:8])
    everyone = frozenset(HeadId(layer, head) for layer in range(2) for head in range(8))
    found = losses(ActivationPatch.of(model, tokens, tokens), tokens, asked, [frozenset(), everyone])[KIND]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_patching_every_head_gives_the_other_prompts_answer(planted):
    # Prompts and twins end alike, so that all that the last token knows of the claim came through heads.
    runner, some = bench_of(planted("deferring"))
    everyone = frozenset(HeadId(layer, head) for layer in range(2) for head in range(8))
    removed = runner.patched(some, [everyone], "test")[0]
    np.testing.assert_allclose(removed, runner.effect(some), atol=1e-4)


def test_patching_one_head_is_what_a_hook_on_its_output_projection_does(planted):
    model = planted("deferring")
    runner, some = bench_of(model)
    found = runner.patched(some, [frozenset([HEAD])], "test")[0]
    prompts, twins = (torch.from_numpy(np.stack(runner.reading.tokens[kind])[some]) for kind in ("prompt", "twin"))
    projection = model.hf.model.layers[1].self_attn.o_proj
    # Only the seven words after the claim's full stop, and the stop itself, are the same in both.
    seen = {}

    def keep(module, inputs):
        seen["z"] = inputs[0].clone()

    def put(module, inputs):
        z = inputs[0].clone()
        z[:, -8:, :8] = seen["z"][:, -8:, :8]
        return (z,)

    def difference(tokens):
        logits = model.hf(input_ids=tokens).logits[:, -1]
        ids = [
            torch.from_numpy(part["prompt"][some])[:, None] for part in (runner.reading.answer, runner.reading.other)
        ]
        return (logits.gather(1, ids[0]) - logits.gather(1, ids[1]))[:, 0]

    with torch.no_grad():
        clean = difference(prompts)
        handle = projection.register_forward_pre_hook(keep)
        difference(twins)
        handle.remove()
        handle = projection.register_forward_pre_hook(put)
        patched = difference(prompts)
        handle.remove()
    np.testing.assert_allclose(found, (clean - patched).numpy(), atol=1e-4)
    assert found.mean() > 5


def test_prompts_of_other_lengths_are_laid_end_to_end(planted):
    model = planted("deferring")
    tokens = [np.asarray([0, 5, 6, 7, 8, 9]), np.asarray([0, 4, 6, 7, 8, 9]), np.asarray([0, 5, 6, 7, 3, 9])]
    sources = [np.asarray([0, 5, 5, 5, 7, 8, 9]), np.asarray([0, 8, 9]), np.asarray([0, 1, 2, 3, 3, 9])]
    swap = ActivationPatch.of(model, tokens, sources)
    assert swap.n_last == 2
    asked = Choices(first=np.asarray([20, 21, 22]), second=np.asarray([30, 31, 32]))
    worlds = [frozenset(), frozenset([HEAD])]
    together = losses(swap, tokens, asked, worlds)[KIND]
    for one in range(3):
        alone = ActivationPatch(model=model, sources=sources[one : one + 1], n_last=2)
        choice = Choices(first=asked.first[one : one + 1], second=asked.second[one : one + 1])
        np.testing.assert_allclose(
            losses(alone, tokens[one : one + 1], choice, worlds)[KIND][:, 0], together[:, one], atol=1e-4
        )


def test_the_gradient_is_the_slope_of_patching(planted):
    # A hundredth of the way to the twin's z changes d by a hundredth of the estimate.
    model = planted("deferring")
    runner, some = bench_of(model, 6)
    prompts = [runner.reading.tokens["prompt"][one] for one in some]
    twins = [runner.reading.tokens["twin"][one] for one in some]
    asked = Choices(first=runner.reading.answer["prompt"][some], second=runner.reading.other["prompt"][some])
    swap = ActivationPatch.of(model, prompts, twins)

    class Partly(ActivationPatch):
        def edited(self, attention, mask, substitute):
            whole = super().edited(attention, mask, substitute)
            return attention.z + 0.01 * (whole - attention.z)

    heads = [HEAD, HeadId(0, 7), HeadId(1, 5)]
    estimates = gradients(swap, prompts, asked, heads)
    slight = Partly(model=model, sources=twins, n_last=swap.n_last)
    steps = losses(slight, prompts, asked, [frozenset(), *(frozenset([head]) for head in heads)])[KIND]
    for row in range(len(heads)):
        slope = (steps[row + 1] - steps[0]) / 0.01
        np.testing.assert_allclose(slope, estimates[row], atol=0.05 + 0.05 * np.abs(estimates[row]).max())
    assert estimates[0].mean() == approx(-runner.triage(some, heads, "twin", "test")[0])
