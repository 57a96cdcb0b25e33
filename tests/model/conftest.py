"""Tiny models, made once for all tests that only read them."""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks.tiny import tiny_causal_lm
from tests.running import selfcheck


@functools.cache
def _checked(family):
    model = tiny_causal_lm(family)
    return model, selfcheck(model)


@pytest.fixture(scope="session")
def checked():
    """A function from a family's name to a (model, check) that all tests share: whoever changes it makes its own."""
    return _checked


@pytest.fixture
def tokens(generator):
    """Two prompts of 24 tokens: three times the window of the tiny models that have one."""
    return torch.randint(3, 100, (2, 24), generator=generator)


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors this small gain nothing from a second thread, and lose much where cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
