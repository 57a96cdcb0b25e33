"""Compare functions in one process: interleaved rounds, medians, ratios."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(
    functions: Mapping[str, Callable[[], Any]], *, rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each function in each round; the order turns every round.

    The first round warms up and is dropped, unless its work is minutes long and `warm_up` is False.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for turn in range(0 if warm_up else 1, rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            started = time.perf_counter()
            functions[name]()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: Mapping[str, list[float]], name: str, base: str) -> float:
    """Median over rounds of one function's seconds over another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median seconds of each function."""
    return {name: round(statistics.median(values), 4) for name, values in seconds.items()}
