"""What tests share: models of transformers run and checked without `headscope.load`, and how many seeds are tried."""

from __future__ import annotations

import pytest

from headscope.model import selfcheck as checking
from headscope.model import taps
from headscope.model.sources.transformers import backbone


def forward(hf, route, tokens, visit, **options):
    """`taps.forward` for a transformers model; its own output."""
    return taps.forward(backbone(hf), route, tokens, visit, **options)


def selfcheck(hf):
    """The self-check of a transformers model."""
    return checking.selfcheck(backbone(hf))


def seeds(n, *, here=1):
    """Parameters 0 to n - 1: the first `here` for every run of the tests, the others for `make soak`."""
    return [*range(here), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(here, n))]
