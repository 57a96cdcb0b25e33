"""A bar on stderr for work past two seconds; nothing for shorter work, or where stderr is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from headscope.render.plain import shown as visible

PATIENCE_S = 2.0
"""Work shorter than this shows no bar."""


def announce(line: str) -> None:
    """Say at once, on a terminal, what is about to be done."""
    if sys.stderr.isatty():
        print(visible(line), file=sys.stderr, flush=True)


def wipe() -> None:
    """On a terminal, take away the line that is being drawn."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextmanager
def meanwhile(line: str) -> Generator[None, None, None]:
    """On a terminal, a line that is there while something without a measure of its own is done."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"\r\x1b[K{visible(line)}", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            wipe()


class _Bar:
    """One count from its start to its total, drawn on one line once `patience_s` have passed."""

    def __init__(self, patience_s: float) -> None:
        self._started = time.monotonic()
        self._patience_s = patience_s
        self._shown = False

    def draw(self, label: str, done: int, total: int) -> None:
        elapsed = time.monotonic() - self._started
        if not sys.stderr.isatty() or (elapsed < self._patience_s and not self._shown):
            return
        self._shown = True
        share = done / max(1, total)
        filled = round(24 * share)
        left = f"  {told(elapsed / share - elapsed)} left" if share else ""
        line = f"{label} {'█' * filled}{'░' * (24 - filled)} {share:4.0%}{left}"
        print(f"\r\x1b[K{visible(line)}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            wipe()


@contextmanager
def bar(label: str, *, patience_s: float = PATIENCE_S) -> Generator[Callable[[int, int], None], None, None]:
    """Give a function of (done, total) that draws the bar, once that many seconds have passed."""
    drawn = _Bar(patience_s)
    try:
        yield lambda done, total: drawn.draw(label, done, total)
    finally:
        drawn.clear()


def told(seconds: float) -> str:
    """Seconds in the largest unit of which there are two."""
    for size, word in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


@contextmanager
def bars() -> Generator[Callable[[str, int, int], None], None, None]:
    """Give a function of (what is being done, done, total) that draws a bar for each count in turn.

    A count goes on under another name where its total stays and it does not fall, so that the time that is left is of
    the whole count. The two seconds are of all of them together, so that many short ones are not silent.
    """
    begun = time.monotonic()
    current = _Bar(PATIENCE_S)
    before: tuple[str, int, int] | None = None

    def update(label: str, done: int, total: int) -> None:
        nonlocal current, before
        if before is not None and (total != before[2] or done < before[1] or _ended(before, label)):
            current.clear()
            current = _Bar(begun + PATIENCE_S - time.monotonic())
        before = label, done, total
        current.draw(label, done, total)

    try:
        yield update
    finally:
        current.clear()


def _ended(before: tuple[str, int, int], label: str) -> bool:
    """Whether a count of that total had come to its end under another name."""
    was, done, total = before
    return label != was and done >= total
