"""Who is computed when: one at a time, no more than may wait, and the report last."""

from __future__ import annotations

import json
import threading
from concurrent.futures import CancelledError

import pytest

from headscope.errors import UnsupportedModel
from headscope.explore.work_queue import BackgroundTask, Failed, Full, Step, WorkQueue

PATIENCE_S = 20


@pytest.fixture
def work():
    made = WorkQueue(waiting=2)
    yield made
    made.close()


def test_one_is_computed_at_a_time_in_order(work):
    running, seen = threading.Semaphore(1), []

    def compute(number):
        assert running.acquire(blocking=False)
        seen.append(number)
        running.release()
        return number

    assert [work.submit(lambda n=n: compute(n)).result(PATIENCE_S) for n in range(3)] == seen == [0, 1, 2]


def test_what_would_wait_behind_too_many_is_refused(work):
    gate, begun = threading.Event(), threading.Event()
    first = work.submit(lambda: (begun.set(), gate.wait(PATIENCE_S)))
    assert begun.wait(PATIENCE_S)
    second, third = work.submit(lambda: 2), work.submit(lambda: 3)
    with pytest.raises(Full):
        work.submit(lambda: 4)
    assert third.cancel()  # its place is free again
    fourth = work.submit(lambda: 4)
    gate.set()
    assert [first.result(PATIENCE_S)[1], second.result(PATIENCE_S), fourth.result(PATIENCE_S)] == [True, 2, 4]
    assert work.submit(lambda: 5).result(PATIENCE_S) == 5


def test_an_error_is_its_askers_alone(work):
    with pytest.raises(ZeroDivisionError):
        work.submit(lambda: 1 / 0).result(PATIENCE_S)
    assert work.submit(lambda: 1).result(PATIENCE_S) == 1


def test_closing_cancels_what_waits():
    work, gate, begun = WorkQueue(), threading.Event(), threading.Event()
    running = work.submit(lambda: (begun.set(), gate.wait(PATIENCE_S)))
    assert begun.wait(PATIENCE_S)
    waiting = work.submit(lambda: 1)
    closing = threading.Thread(target=work.close)
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result(PATIENCE_S)
    gate.set()
    closing.join(PATIENCE_S)
    assert running.result(0)[1]


def test_the_long_computation_steps_aside(work):
    gate, seen = threading.Event(), []
    asked = [work.submit(lambda: gate.wait(PATIENCE_S)), work.submit(lambda: seen.append("question"))]

    def compute(progress):
        progress("scanning", 1, 4)
        seen.append("report")
        return b"{}"

    aside = BackgroundTask(work, compute)
    aside.start()
    for _ in range(200):
        if aside.state == Step(what="scanning", done=1, total=4):
            break
        threading.Event().wait(0.05)
    assert aside.state == Step(what="scanning", done=1, total=4)
    assert seen == []
    gate.set()
    for one in asked:
        one.result(PATIENCE_S)
    aside._thread.join(PATIENCE_S)
    assert seen == ["question", "report"]
    assert json.loads(aside.state) == {}


def test_the_long_computation_ends_when_told(work):
    begun = threading.Event()

    def compute(progress):
        begun.set()
        while True:
            progress("verifying", 0, 1)

    aside = BackgroundTask(work, compute)
    aside.start()
    assert begun.wait(PATIENCE_S)
    aside.stop()
    assert aside.state == Failed(error="it was stopped.", ours=False)


@pytest.mark.parametrize(
    ("error", "ours", "says"),
    [(UnsupportedModel("it has no LM head."), False, "it has no LM head."), (KeyError("x"), True, "a defect")],
)
def test_the_long_computation_says_why_it_gave_nothing(work, capsys, error, ours, says):
    def compute(progress):
        raise error

    aside = BackgroundTask(work, compute)
    aside.start()
    aside._thread.join(PATIENCE_S)
    assert isinstance(aside.state, Failed)
    assert aside.state.ours is ours
    assert says in aside.state.error
    assert ("Traceback" in capsys.readouterr().err) is ours
