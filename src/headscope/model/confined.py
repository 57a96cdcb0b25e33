"""Run what a model's files describe, a chat template or a tokenizer, where it can be stopped.

A template is a program: it loops, or doubles a string, as long as it likes, and neither Python nor Jinja's sandbox
stops it in the middle of one multiplication. So it runs in a copy of this process that the system limits:

    time      `SECONDS`, then it is killed
    memory    `MOST_BYTES` beyond what this process has
    answer    `MOST_ANSWER` bytes, or the copy is killed

Cost: a fork, some 10 ms.

Misleading when: the system cannot copy a process (Windows): it then runs here, without limits.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
import warnings
from collections.abc import Callable
from math import ceil
from typing import Any

from headscope.errors import ModelError, brief
from headscope.stopping import uninterrupted

SECONDS = 20.0
MOST_BYTES = 2**30
MOST_ANSWER = 16 * 2**20
LISTENS_S = 0.1
"""Seconds after which it looks whether it was asked to end."""


def confined(what: str, action: Callable[[], Any]) -> Any:
    """What an action returns, run in a copy of this process that is stopped at the limits above.

    Args:
        what: Its name in an error.
        action: Changes nothing that is needed here; what it returns has to survive JSON.

    Raises:
        ModelError: it failed, or went beyond a limit.
    """
    if not hasattr(os, "fork"):
        return action()
    with uninterrupted() as asked:  # so that Ctrl-C leaves no copy behind
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # other threads do not go on in the copy, and are not needed
            child = os.fork()
        if child == 0:
            _answer(action, writing)
        os.close(writing)
        try:
            text = _collect(reading, asked)
        finally:
            os.close(reading)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if text is None:
        raise ModelError(
            f"{what} takes more than {SECONDS:.0f} seconds, or gives more than {MOST_ANSWER:,} bytes; fix the model's "
            "files, or give token ids."
        )
    try:
        answer = json.loads(text)
    except ValueError:
        raise ModelError(
            f"{what} takes more than {MOST_BYTES / 1e9:.1f} GB of memory, or breaks down; fix the model's files, or "
            "give token ids."
        ) from None
    if "failed" in answer:
        raise ModelError(f"{what} fails ({brief(answer['failed'])}); fix the model's files, or give token ids.")
    return answer["gives"]


def _answer(action: Callable[[], Any], writing: int) -> None:
    """In the copy: run the action, write what came of it, and end without what a process does at its end."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.alarm(ceil(SECONDS) + 1)  # should nobody be left who stops it
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a library's last words
        _limit_memory()
        answer = {"gives": action()}
    except MemoryError:
        os._exit(1)
    except BaseException as error:  # a panic of Rust is one
        answer = {"failed": f"{type(error).__name__}: {str(error)[:500]}"}
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode())
    finally:
        os._exit(0)


def _limit_memory() -> None:
    import resource

    with contextlib.suppress(OSError, ValueError):  # no such file on macOS, or a limit that is lower already
        with open("/proc/self/statm") as file:
            has = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (has + MOST_BYTES, has + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _collect(reading: int, asked: Callable[[], bool]) -> bytes | None:
    """All that is written to a pipe; None past a limit, or if asked to end."""
    until, text = time.monotonic() + SECONDS, bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0 and not asked():
            if not selector.select(min(left, LISTENS_S)):
                continue
            piece = os.read(reading, 2**16)
            if not piece:
                return bytes(text)
            text += piece
            if len(text) > MOST_ANSWER:
                return None
    return None
