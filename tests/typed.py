"""Checks a function's signature from its first call on: most functions are never called in most processes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from beartype import beartype


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
