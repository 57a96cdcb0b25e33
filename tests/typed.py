"""Checks the signature of every function of headscope in its first calls of each test.

jaxtyping's hook decorates functions when they are made and checks each call: over the suite that takes longer than what
is tested. A signature that fits a few times in a test fits; and of a function within a function, which is another
object each time that its line runs, the first few objects are checked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import torch

CALLS_A_TEST = 4
"""How many calls of a function of a module or a class are checked in each test."""

CALLS_WITHIN = 4
"""How many calls of a function within a function are checked in a process; each takes some 10 ms to prepare."""

_begun: list[list[int]] = []
"""What is left of the calls to check, one number in a list for each function that was called in this test."""

_within: dict[CodeType, list[int]] = {}
_jaxtyped = jaxtyping.jaxtyped


def begin() -> None:
    """Begin a test: every function's first calls are checked again."""
    for left in _begun:
        left[0] = CALLS_A_TEST
    _begun.clear()


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, put on at the function's first call, and passed by once enough calls were checked."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if isinstance(function, type) and dataclasses.is_dataclass(function):
        function.__init__ = jaxtyped(function.__init__, typechecker=typechecker)  # pyright: ignore
        return function
    if not isinstance(function, FunctionType):
        return _jaxtyped(function, typechecker=typechecker)
    within = "<locals>" in function.__qualname__
    left = _within.setdefault(function.__code__, [CALLS_WITHIN]) if within else [CALLS_A_TEST]
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if not left[0] or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if left[0] == CALLS_A_TEST and not within:
            _begun.append(left)
        left[0] -= 1
        if checked is None:
            checked = _jaxtyped(function, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call


def install() -> None:
    """Before any test imports headscope: from here on its functions and dataclasses check what their signature says."""
    jaxtyping.jaxtyped = jaxtyped  # pyright: ignore[reportPrivateImportUsage]
    jaxtyping.install_import_hook("headscope", "beartype.beartype")
