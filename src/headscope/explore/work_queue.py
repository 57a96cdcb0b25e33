"""Computations in turn: one at a time, few in wait, and a long one beside them that steps aside.

A model is one machine, so questions queue for it. `submit` refuses what would wait behind too many others, at once and
without blocking the caller. A question whose asker has gone is cancelled if it still waits. The report is made in a
thread of its own over minutes: at each of its steps it lets all questions go first.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Condition, Event, Thread
from typing import TypeVar

from headscope.errors import HeadscopeError

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]

WAITING = 256
"""Computations that may wait for their turn."""


class Full(Exception):
    """Too many computations wait."""


class WorkQueue:
    """A thread that computes, and those who wait for it."""

    def __init__(self, *, waiting: int = WAITING) -> None:
        self.waiting = waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headscope-explore")
        self._pending = 0
        self._changed = Condition()

    def submit(self, compute: Callable[[], Result]) -> Future[Result]:
        """Queue a computation.

        Raises:
            Full: one is computed and `waiting` wait.
        """
        with self._changed:
            if self._pending > self.waiting:
                raise Full
            self._pending += 1
        future = self._thread.submit(compute)
        future.add_done_callback(self._left)
        return future

    def let_go_first(self) -> None:
        """Return once nothing is computed here and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending == 0)

    def close(self) -> None:
        """Cancel what waits; return once nothing is computed."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _left(self, future: Future[Result]) -> None:
        with self._changed:
            self._pending -= 1
            self._changed.notify_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far the long computation has come."""

    what: str
    """What is being done."""
    done: int
    """Parts done."""
    total: int
    """Of so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The long computation gave nothing."""

    error: str
    """Why, in one sentence."""
    ours: bool
    """Whether that is a defect of headscope; the terminal then has the traceback."""


class Stopped(Exception):
    """The long computation was told to end."""


class BackgroundTask:
    """One long computation in a thread of its own, that lets a queue's computations go first.

    Args:
        work: Whose computations go first.
        compute: Gets a function to call between its steps.
    """

    def __init__(self, work: WorkQueue, compute: Callable[[Progress], bytes]) -> None:
        self._work, self._compute = work, compute
        self._stop = Event()
        self._thread = Thread(target=self._run, name="headscope-report", daemon=True)
        self.state: bytes | Step | Failed = Step(what="starting", done=0, total=1)
        """What it gave, or how far it has come, or why it gave nothing."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End at the next step, and wait for that."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self.state = self._compute(self._step)
        except Stopped:
            self.state = Failed(error="it was stopped.", ours=False)
        except HeadscopeError as error:
            self.state = Failed(error=str(error), ours=False)
        except Exception:  # any defect: it is printed here, and the page says that there was one
            traceback.print_exc(file=sys.stderr)
            self.state = Failed(error="a defect of headscope ended it; the terminal has the traceback.", ours=True)

    def _step(self, what: str, done: int, total: int) -> None:
        self.state = Step(what=what, done=done, total=total)
        self._work.let_go_first()
        if self._stop.is_set():
            raise Stopped
