"""A bar on stderr for work past two seconds; nothing for shorter work, or where stderr is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

from headscope.render.plain import shown as visible

PATIENCE_S = 2.0
"""Work shorter than this shows no bar."""


def announce(line: str) -> None:
    """Say at once, on a terminal, what is about to be done."""
    if sys.stderr.isatty():
        print(visible(line), file=sys.stderr, flush=True)


@contextmanager
def bar(label: str, *, patience_s: float = PATIENCE_S) -> Generator[Callable[[int, int], None], None, None]:
    """Give a function of (done, total) that draws the bar, once that many seconds have passed."""
    started = time.monotonic()
    shown = False

    def update(done: int, total: int) -> None:
        nonlocal shown
        if not sys.stderr.isatty() or (time.monotonic() - started < patience_s and not shown):
            return
        shown = True
        share = done / max(1, total)
        filled = round(24 * share)
        elapsed = time.monotonic() - started
        left = elapsed / share - elapsed if share else 0.0
        line = f"{label} {'█' * filled}{'░' * (24 - filled)} {share:4.0%}  {_told(left)} left"
        print(f"\r\x1b[K{visible(line)}", end="", file=sys.stderr, flush=True)

    try:
        yield update
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _told(seconds: float) -> str:
    for size, word in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"


@contextmanager
def bars() -> Generator[Callable[[str, int, int], None], None, None]:
    """Give a function of (what is being done, done, total) that draws a bar for each kind of work in turn.

    The two seconds count from the first of them, so that many short ones are not silent.
    """
    begun = time.monotonic()
    with ExitStack() as open_bar:
        current: str | None = None
        draw: Callable[[int, int], None] | None = None

        def update(label: str, done: int, total: int) -> None:
            nonlocal current, draw
            if label != current or draw is None:
                open_bar.pop_all().close()
                left_s = begun + PATIENCE_S - time.monotonic()
                current, draw = label, open_bar.enter_context(bar(label, patience_s=left_s))
            draw(done, total)

        yield update
