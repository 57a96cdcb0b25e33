"""Long runs: memory stays flat, and numbers stay the same beside other threads and processes."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import psutil

import headscope as hs

GROWTH = 0.02
"""Largest growth of resident memory, from the first fifth of a run to its last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory of this process over a run."""

    times: int
    """How often the work was done."""
    first_bytes: int
    """Median over the first fifth, its first tenth left out: what is made once is made there."""
    last_bytes: int
    """Median over the last fifth."""

    @property
    def growth(self) -> float:
        """Share of the first that the last has more."""
        return self.last_bytes / self.first_bytes - 1


def watched(work: Callable[[int], object], times: int) -> Memory:
    """Do something often and watch the memory."""
    process = psutil.Process()
    sizes = []
    for number in range(times):
        work(number)
        if number % 10 == 9:
            gc.collect()
        sizes.append(process.memory_info().rss)
    fifth = max(1, times // 5)
    return Memory(
        times=times,
        first_bytes=int(statistics.median(sizes[fifth // 2 : fifth] or sizes[:1])),
        last_bytes=int(statistics.median(sizes[-fifth:])),
    )


def scans(times: int = 1000) -> Memory:
    """Scan one model over and over, with new prompts each time."""
    model = hs.load("demo")
    return watched(lambda number: _scan(model, seed=number), times)


def loads(times: int = 200) -> Memory:
    """Load the model again and again, and scan it."""
    return watched(lambda number: _scan(hs.load("demo")), times)


def numbers(seed: int) -> list[float]:
    """The scores that must come out on every machine."""
    return [score.mean for score in _scan(hs.load("demo"), seed=seed).scores]


def _scan(model: hs.Model, *, seed: int = 0) -> hs.Scan:
    return hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=12, seed=seed))


def threads(rounds: int = 10) -> int:
    """Two threads scan at once, each its own prompts, beside the same scans alone: how many scans were the same."""
    alone = {seed: numbers(seed) for seed in range(2)}
    found: dict[int, list[list[float]]] = {seed: [] for seed in alone}

    def run(seed: int) -> None:
        for _ in range(rounds):
            found[seed].append(numbers(seed))

    workers = [threading.Thread(target=run, args=(seed,)) for seed in alone]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(one == alone[seed] for seed, many in found.items() for one in many), "threads changed the numbers"
    return sum(map(len, found.values()))


def processes() -> int:
    """Two processes scan at once, with the numbers of this one: how many."""
    code = "from soak.long import numbers; print(repr(numbers(0)))"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [one.communicate()[0].strip().splitlines()[-1] for one in running]
    assert printed == [repr(numbers(0))] * 2, "processes changed the numbers"
    return len(printed)
