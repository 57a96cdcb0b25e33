"""Ctrl-C: exit code 130 and one line, wherever it comes, a library's own callbacks included."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from headscope.stopping import uninterrupted

STOPPED = "headscope: stopped by Ctrl-C; only what it had already saved is kept.\n"
SETTING = """
import ctypes, os, signal, sys
import headscope.__main__ as entry, headscope.cli.main as m
from pathlib import Path

def press():
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass

class Dies:
    def __del__(self):
        press()

class Splits:
    def pre_tokenize(self, text):
        press()

def compared(a, b):
    press()
    return 0

calling = ""

def inside(frame, event, what):
    # for sys.setprofile: pressed in the first line of Python that this function of torch calls
    global calling
    if event == "c_call":
        calling = getattr(what, "__name__", "")
    elif event == "call" and calling == "_multiprocessing_init":
        sys.setprofile(None)
        press()

def work():
    {work}
    print("went on")

m.app = work
entry.main()
"""


def hears_ctrl_c():
    """For a new process: what runs in a shell's background ignores Ctrl-C, and hands that on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupted(*work, **options):
    """A command that does this, and then says that it went on: its exit code, stdout and stderr."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    code = SETTING.format(work="\n    ".join(work))
    done = subprocess.run([sys.executable, "-c", code], text=True, timeout=120, preexec_fn=hears_ctrl_c, **pipes)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("delay", [0.3, 1.0, 2.5])
def test_at_any_moment(delay):
    # the first moments are the interpreter's own: the signal is sent once our file has begun
    code = (
        "import sys; from headscope.__main__ import main; print('begun', flush=True); "
        "sys.argv = ['headscope', 'check', 'demo']; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    assert process.stdout.readline() == "begun\n"
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) in [(130, STOPPED), (0, "")]  # 0: it was done before


@pytest.mark.parametrize(
    "work",
    [
        ("press()",),
        # an exception out of these would be dropped
        ("Dies()",),
        (
            "from ctypes import CFUNCTYPE, c_int, c_void_p",
            "numbers = (c_int * 2)()",
            "ctypes.CDLL(None).qsort(numbers, 2, 4, CFUNCTYPE(c_int, c_void_p, c_void_p)(compared))",
        ),
        ("try:", "    press()", "except BaseException:", "    pass"),
        # or come as another
        (
            "from tokenizers.pre_tokenizers import PreTokenizer",
            "PreTokenizer.custom(Splits()).pre_tokenize_str('a b')",
        ),
        ("try:", "    press()", "except BaseException:", "    raise ImportError('half a module')"),
    ],
    ids=["our own line", "a destructor", "a callback of C", "whoever catches all", "a callback of Rust", "an import"],
)
def test_in_a_line_that_may_raise_nothing(work):
    assert interrupted(*work) == (130, "", STOPPED)


def test_in_the_import_of_a_library():
    # It imports a module of Python's, and lets a failure of that out of a C++ function that has no way out but abort.
    assert interrupted("sys.setprofile(inside)", "import torch") == (130, "", STOPPED)


def test_nothing_is_torn_down_under_the_threads_of_a_library():
    # Threads and an `atexit` of others run on or hang at an orderly end.
    code = ("import atexit, threading, time", "atexit.register(time.sleep, 600)", "threading.Timer(600, print).start()")
    assert interrupted(*code, "press()") == (130, "", STOPPED)


def test_what_was_printed_before_is_not_lost():
    assert interrupted("print('before')", "press()") == (130, "before\n", STOPPED)


@pytest.mark.parametrize(("presses", "left"), [("press()", ["a.json"]), ("press(), press()", [".a.json.*"])])
def test_a_file_is_written_whole_unless_it_is_pressed_twice(presses, left, tmp_path):
    writes = (
        "from headscope.records.files import write_whole",
        "real = os.replace",
        f"os.replace = lambda *names: ({presses}, real(*names))",
        "write_whole(Path('a.json'), b'{}')",
    )
    assert interrupted(*writes, cwd=tmp_path) == (130, "", STOPPED)
    (found,) = tmp_path.iterdir()
    assert found.match(*left)
    assert found.read_text() == "{}"


def test_the_bar_on_a_terminal_makes_room_for_the_line():
    screen, end = os.openpty()
    work = ("from headscope.cli.progress import meanwhile", "with meanwhile('opening'):", "    press()")
    code, out, _ = interrupted(*work, stderr=end)
    drawn = os.read(screen, 4096).decode()
    os.close(screen)
    os.close(end)
    assert (code, out) == (130, "")
    assert drawn.split("\r\x1b[K") == ["", "opening", STOPPED.replace("\n", "\r\n")]


def test_no_copy_of_the_process_is_left_behind(tmp_path):
    # as a template runs in one, which may be a loop
    work = (
        "import time, headscope.model.confined as c",
        "def loop():",
        "    Path('begun').write_text(str(os.getpid()))",
        "    Path('begun').rename('copy')",
        "    time.sleep(600)",
        "c.confined('it', loop)",
    )
    code, note = SETTING.format(work="\n    ".join(work)), tmp_path / "copy"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, preexec_fn=hears_ctrl_c)
    until(note.exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    copy = int(note.read_text())
    until(lambda: not psutil.pid_exists(copy) or psutil.Process(copy).status() == psutil.STATUS_ZOMBIE)


def until(what):
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_python_s_own_ctrl_c_is_as_it_is():
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        raise KeyboardInterrupt
