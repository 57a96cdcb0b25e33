"""The patterns of some heads on a prompt are those that transformers' eager attention returns."""

from __future__ import annotations

import pytest
import torch

from benchmarks.tiny import tiny_causal_lm
from headscope.errors import ArgumentError
from headscope.heads import HeadId
from headscope.model.load import load
from headscope.model.patterns import patterns

IDS = torch.tensor([[5, 9, 5, 9, 7, 3], [2, 4, 6, 8, 10, 12]])


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def module(request):
    return tiny_causal_lm(request.param)


def eager(module):
    """[layer][prompt head query key], by transformers."""
    module.set_attn_implementation("eager")
    with torch.no_grad():
        return module(IDS, output_attentions=True).attentions


def seen(model, heads=None, **options):
    found = {}
    patterns(model, IDS, lambda head, pattern: found.update({head: pattern.clone()}), heads, **options)
    return found


def test_every_head_has_the_eager_pattern(module):
    expected = eager(module)
    found = seen(load(module))
    assert list(found) == [HeadId(layer, head) for layer, one in enumerate(expected) for head in range(one.shape[1])]
    for head, pattern in found.items():
        assert torch.allclose(pattern.float(), expected[head.layer][:, head.head], atol=1e-5)


def test_some_heads_are_those_of_all(module):
    model = load(module)
    everything = seen(model)
    asked = [HeadId(1, 1), HeadId(0, 0)]
    some = seen(model, asked)
    assert set(some) == set(asked)
    assert all(torch.equal(some[head], everything[head]) for head in asked)


def test_an_edit_reaches_the_layers_above_it_alone(module):
    model = load(module)
    clean = seen(model)
    edited = seen(model, edit=lambda attention: torch.zeros_like(attention.z) if attention.layer == 0 else None)
    assert torch.equal(clean[HeadId(0, 0)], edited[HeadId(0, 0)])
    assert not torch.allclose(clean[HeadId(1, 0)], edited[HeadId(1, 0)])


def test_a_call_that_never_comes_is_an_error(module):
    with pytest.raises(ArgumentError, match="does not run"):
        seen(load(module), [HeadId(0, 0, 1)])
