"""The planted heads matter in the order and by the amounts that they were planted with.

Removal here is a pre-hook on the output projection and knows nothing of headscope.
"""

import itertools
import math
from contextlib import contextmanager

import pytest
import torch
from pytest import approx

from benchmarks.planted import N_INDUCTION, TOP, Planted, gains, planted
from headscope.heads import HeadId

PERIOD = 20
D_HEAD = 64


@pytest.fixture(scope="module")
def built() -> Planted:
    return planted()


@pytest.fixture(scope="module")
def tokens(built):
    generator = torch.Generator().manual_seed(3)
    r = torch.randperm(built.bos_token_id, generator=generator)[None, :PERIOD]
    return torch.cat([torch.full((1, 1), built.bos_token_id), r, r], dim=1)


@contextmanager
def removed(built, head: HeadId | None):
    if head is None:
        yield
        return

    def silence(module, inputs):
        z = inputs[0].clone()
        z[..., head.head * D_HEAD : (head.head + 1) * D_HEAD] = 0.0
        return (z,)

    handle = built.model.transformer.h[head.layer].attn.c_proj.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def losses(built, tokens, head=None):
    """Mean loss in nats on the second copy without its first token, and on the first copy."""
    with torch.no_grad(), removed(built, head):
        predicted = built.model(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    loss = -predicted[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
    return loss[:, PERIOD + 1 :].mean().item(), loss[:, :PERIOD].mean().item()


@pytest.fixture(scope="module")
def clean(built, tokens):
    return losses(built, tokens)


@pytest.fixture(scope="module")
def effects(built, tokens, clean):
    """What each graded head's removal costs, in the designed order."""
    return [losses(built, tokens, head)[0] - clean[0] for head in built.graded]


def test_it_has_gpt2_smalls_shape(built):
    config = built.model.config
    assert (config.n_layer, config.n_head, config.n_embd, config.vocab_size) == (12, 12, 768, 50_257)
    assert config.n_positions >= 256
    assert config.n_inner is None or config.n_inner == 4 * config.n_embd
    assert not built.model.training
    assert all(weight.isfinite().all() for weight in built.model.parameters())


def test_the_graded_heads_are_two_senders_before_twelve_induction_heads(built):
    assert len(set(built.graded)) == len(built.graded) == 2 + N_INDUCTION
    assert [head.layer for head in built.graded[:2]] == [0, 0]
    assert all(head.layer >= 2 for head in built.graded[2:])
    assert len({head.layer for head in built.graded[2:]}) >= 4


def test_the_clean_loss_is_what_the_module_says_and_not_saturated(clean):
    second, first = clean
    slices = [sum(gains()[which::2]) for which in range(2)]
    wrong = math.log(50_257) + sum(g * g for g in slices) / 128 - sum(slices)
    assert second == approx(math.log1p(math.exp(wrong)), rel=0.25)
    assert 0.3 < second < 3.0
    assert first == approx(math.log(50_257), abs=0.1)


def test_removal_costs_fall_in_the_designed_order(effects):
    steps = [above / below for above, below in itertools.pairwise(effects)]
    assert min(effects) > 0.02
    assert min(steps) > 1.15
    assert steps[TOP - 1] > 1.7  # the tenth from the eleventh


def test_other_heads_matter_little_but_not_nothing(built, tokens, clean, effects):
    others = [
        next(head for head in (HeadId(layer, index) for index in range(12)) if head not in built.graded)
        for layer in (0, 1, 4, 7, 10)
    ]
    found = [abs(losses(built, tokens, head)[0] - clean[0]) for head in others]
    assert max(found) < effects[-1] / 10
    assert min(found) > 1e-6


def test_the_same_seed_gives_the_same_model_and_leaves_the_callers(built):
    before = torch.get_rng_state()
    again = planted()
    assert torch.equal(before, torch.get_rng_state())
    assert again.graded == built.graded
    # To rounding: the fixture may have been built on another number of threads.
    for one, two in zip(again.model.parameters(), built.model.parameters(), strict=True):
        assert ((one - two).abs() <= 1e-3 + 1e-3 * two.abs()).all()
