"""The planted models: three as `python -m benchmarks.behavior --write tests/behaviors/models --seeds 1` made them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import headscope as hs
from headscope.planted import deferring

MODELS = Path(__file__).parent / "models"


@cache
def _loaded(plan: str) -> hs.Model:
    if plan == "copying":
        built = deferring.planted("copying")
        return hs.load(built.model, tokenizer=built.tokenizer)
    return hs.load(MODELS / plan, dtype="float32")


@cache
def _found(plan: str) -> hs.BehaviorResult:
    world = deferring.AblatedHeads.of(0)
    return hs.behavior([world.facts(), world.praise()], _loaded(plan))


@pytest.fixture(scope="session")
def planted() -> Callable[[str], hs.Model]:
    """A planted model by the name of its plan."""
    return _loaded


@pytest.fixture(scope="session")
def found() -> Callable[[str], hs.BehaviorResult]:
    """What the search finds in it, with default arguments."""
    return _found
