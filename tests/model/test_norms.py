"""What a module does to rows, read from the outside: a norm's gain and bias, and None of what is no norm."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from headscope.model.weights.norms import read_norm

D = 16
ROWS = torch.randn(6, D, generator=torch.Generator().manual_seed(0)) * 3


def with_numbers(norm):
    """A norm whose gain and bias are not those that it begins with."""
    with torch.no_grad():
        for name, parameter in norm.named_parameters():
            parameter.copy_(torch.linspace(0.5, 2.0, D) if name == "weight" else torch.linspace(-1.0, 1.0, D))
    return norm


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
def test_a_norms_gain_and_bias_are_read_and_whether_it_takes_the_mean_away(kind):
    module = with_numbers(kind(D))
    norm = read_norm(module, ROWS)
    torch.testing.assert_close(norm.gain, module.weight.detach(), rtol=1e-4, atol=1e-5)
    assert norm.centred == (kind is nn.LayerNorm)
    bias = getattr(module, "bias", None)
    if bias is not None:
        torch.testing.assert_close(norm.bias, bias.detach(), rtol=1e-4, atol=1e-5)


class Twice(nn.Module):
    def forward(self, rows, more):
        return rows + more


@pytest.mark.parametrize("module", [nn.Tanh(), nn.Linear(D, D), Twice()], ids=["tanh", "a map", "needs more"])
def test_what_is_no_norm_is_none(module):
    assert read_norm(module, ROWS) is None
