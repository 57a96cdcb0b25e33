"""Ctrl-C at the command line: the process says what it keeps, and ends where it stands.

    ends            from now on, Ctrl-C does that
    uninterrupted   what must not end half done, like the writing of a file: the end waits for it
    keeping         what is said to be kept, in place of `SAVED`

Python's own way is an exception out of whatever line runs, and that line may have been called by a library's C++ or
Rust. Some of these may not fail, and abort the process; others drop the exception, and the program goes on; an import
leaves half a module, or tells of a package that is missing. So nothing is raised, and nothing is torn down.

A program that imports headscope has Python's own way, and `uninterrupted` and `keeping` do nothing in it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
SAVED = "only what it had already saved is kept."


class _CtrlC:
    """What has been asked, and what is to be waited for and said."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] | None = None
        self.asked = self.ending = False
        self.held: list[object] = []
        self.kept: list[Callable[[], str]] = []

    def hear(self, *_: object) -> None:
        """The signal. A second one waits for nothing."""
        if self.asked or not self.held:
            self.end()
        self.asked = True

    def end(self) -> None:
        if not self.ending:
            self.ending = True
            with suppress(Exception):
                assert self.say is not None
                self.say(f"headscope: stopped by Ctrl-C; {self.kept[-1]() if self.kept else SAVED}")
            with suppress(Exception):
                sys.stdout.flush()
        os._exit(INTERRUPTED)


_ctrl_c = _CtrlC()


def ends(say: Callable[[str], None]) -> None:
    """From now on Ctrl-C ends this process, unless it is ignored, as in a shell's background.

    Args:
        say: Gets the line that is said, in the middle of anything.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _ctrl_c.say = say
        signal.signal(signal.SIGINT, _ctrl_c.hear)


@contextmanager
def uninterrupted() -> Generator[Callable[[], bool], None, None]:
    """What is done here is done whole before Ctrl-C ends the process.

    Yields:
        A function that says whether that is waited for, for what takes long and can come to an end of its own.
    """
    mark = object()
    _ctrl_c.held.append(mark)
    try:
        yield lambda: _ctrl_c.asked
    finally:
        _ctrl_c.held.remove(mark)
        if _ctrl_c.asked and not _ctrl_c.held:
            _ctrl_c.end()


@contextmanager
def keeping(kept: Callable[[], str]) -> Generator[None, None, None]:
    """What Ctrl-C says is kept, asked when it comes: the rest of a sentence."""
    _ctrl_c.kept.append(kept)
    try:
        yield
    finally:
        _ctrl_c.kept.remove(kept)
