"""Checks the signature of every function of headscope in its first calls of the first tests of each file.

jaxtyping's hook decorates functions when they are made and checks each call: over the suite that takes longer than what
is tested. A signature that fits a few times in a test fits, and the tests of one file call a function alike; and of a
function within a function, which is another object each time that its line runs, the first few objects are checked.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import torch

CALLS_A_TEST = 2
"""How many calls of a function of a module or a class are checked in each test."""

TESTS_A_FILE = 8
"""In how many tests of a file that call it."""

CALLS_WITHIN = 4
"""How many calls of a function within a function are checked in a process; each takes some 10 ms to prepare."""

_left: list[list[int]] = []
"""[calls to check in this test, tests of this file to check it in], of each function that this file called."""

_within: dict[CodeType, list[int]] = {}
_jaxtyped = jaxtyping.jaxtyped
_file = ""


def begin(file: str) -> None:
    """Begin a test of this file."""
    global _file
    if file != _file:
        for left in _left:
            left[:] = CALLS_A_TEST, TESTS_A_FILE
        _left.clear()
        _file = file
    for left in _left:
        if left[0] < CALLS_A_TEST and left[1]:
            left[1] -= 1
            left[0] = CALLS_A_TEST if left[1] else 0


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
    left = _within.setdefault(function.__code__, [CALLS_WITHIN, 0]) if within else [CALLS_A_TEST, TESTS_A_FILE]
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if not left[0] or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if left == [CALLS_A_TEST, TESTS_A_FILE]:
            _left.append(left)
        left[0] -= 1
        if checked is None:
            checked = _jaxtyped(function, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call


def install() -> None:
    """Before any test imports headscope: from here on its functions and dataclasses check what their signature says."""
    jaxtyping.jaxtyped = jaxtyped  # pyright: ignore[reportPrivateImportUsage]
    jaxtyping.install_import_hook("headscope", "beartype.beartype")
