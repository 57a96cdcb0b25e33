"""Processes that begin with torch and transformers imported.

A new interpreter takes six seconds of processor time to import them. These processes are forked from a server that has:
each has its own memory, environment, folder, streams, signals and exit code. What a test asks of the first moments of a
process, or of what is imported when, needs a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, Pipe

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "transformers",
        "transformers.modeling_utils",
        "transformers.models.auto.modeling_auto",
        "scipy.stats",
        "headscope",
    ]
)


class Forked:
    """One that calls a function of a module, with a part of `subprocess.Popen`'s interface; its input is empty."""

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        ends = [Pipe(duplex=False) for _ in range(2)]
        self._process = _context.Process(target=_run, args=(*(write for _, write in ends), function, arguments))
        self._process.start()
        self.stdout, self.stderr = (os.fdopen(os.dup(read.fileno())) for read, _ in ends)
        for end in (end for pair in ends for end in pair):
            end.close()

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, minus the number of the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The same, by Popen's name."""
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, signum)

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """Wait for its end, and give what it wrote; past `timeout` seconds it is killed."""
        late = threading.Timer(timeout, self._process.kill)
        late.start()
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as pool:
            out, err = pool.map(lambda stream: stream.read(), (self.stdout, self.stderr))
        self._process.join()
        late.cancel()
        return out, err

    def close(self) -> None:
        """Kill it if it still runs, and give back what it held."""
        self._process.kill()
        self._process.join()
        self.stdout.close()
        self.stderr.close()


def headscope(*arguments: object) -> Forked:
    """`headscope ...`."""
    return Forked(main, *map(str, arguments))


def main(*arguments: str) -> None:
    """What such a process does."""
    from headscope.__main__ import main as run

    sys.argv = ["headscope", *arguments]
    run()


def _run(out: Connection, err: Connection, function: Callable[..., None], arguments: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    for stream, connection in ((1, out), (2, err)):
        os.dup2(connection.fileno(), stream)
        connection.close()
    sys.stdout, sys.stderr = (
        os.fdopen(1, "w"),
        os.fdopen(2, "w", buffering=1),
    )
    function(*arguments)
