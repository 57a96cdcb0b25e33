"""Checks the signature of every function of headscope in its first calls of each test.

jaxtyping's hook decorates functions when they are made and checks each call: over the suite that takes longer than what
is tested. A signature that fits some twenty times in a test fits; and of a function within a function, which is another
object each time that its line runs, the first few objects are checked.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
import torch
from beartype import beartype

CALLS_A_TEST = 20
"""How many calls of a function of a module or a class are checked in each test."""

CALLS_WITHIN = 5
"""How many calls of a function within a function are checked in a process; each takes some 10 ms to prepare."""

called: Counter[CodeType] = Counter()
"""Calls of functions of modules and classes in this test; the fixture `_seeded` clears it."""

_within: Counter[CodeType] = Counter()
_jaxtyped = jaxtyping.jaxtyped


def jaxtyped(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, put on at the function's first call, and passed by once enough calls were checked."""
    if function is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if not isinstance(function, FunctionType):
        return _jaxtyped(function, typechecker=typechecker)
    code = function.__code__
    counter, most = (_within, CALLS_WITHIN) if "<locals>" in function.__qualname__ else (called, CALLS_A_TEST)
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if torch.compiler.is_compiling() or counter[code] >= most:
            return function(*args, **kwargs)
        counter[code] += 1
        if checked is None:
            checked = _jaxtyped(function, typechecker=typechecker)
        return checked(*args, **kwargs)

    return call


def install() -> None:
    """Before any test imports headscope: from here on its functions and dataclasses check what their signature says."""
    jaxtyping.jaxtyped = jaxtyped  # pyright: ignore[reportPrivateImportUsage]
    jaxtyping.install_import_hook("headscope", f"{__name__}.when_called")


def when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """`beartype`, which writes the check's code; that takes longer than most functions' own import."""
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if checked is None:
            checked = beartype(function)
        return checked(*args, **kwargs)

    return call
