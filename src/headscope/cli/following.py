"""What to type next: one line on the terminal after each command, with the model and how it was opened filled in."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from headscope.render.plain import say


def suggest(command: Sequence[object], why: str) -> None:
    """Say which command comes next, where results are read by a person: stdout and stderr are terminals.

    Args:
        command: Its words, without `headscope`.
        why: What it answers.
    """
    if sys.stdout.isatty() and sys.stderr.isatty():
        say(f"\nNext: headscope {shlex.join(map(str, command))}  ({why})", err=True)
