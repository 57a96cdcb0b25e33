"""What the system refuses: one line, exit code 2, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from headscope.errors import ArgumentError
from headscope.sweeps.query import query
from headscope.sweeps.store import Store

HEADSCOPE = [sys.executable, "-m", "headscope"]


def run(command, **options):
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, **options)


def in_shell(line, **options):
    return run(["bash", "-c", line, "bash", sys.executable], **options)


def one_line(done, code, *parts):
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("headscope: ")
    assert all(part in line for part in parts), line


def test_python_m():
    done = run([*HEADSCOPE, "--version"], stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout.split()[0]) == (0, "headscope")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_stdout_full():
    one_line(in_shell('"$1" -m headscope --version > /dev/full'), 2, "No space left on device")


def test_stdout_closed():
    one_line(in_shell('"$1" -m headscope --version >&-'), 2, "stdout is closed")


def test_an_ascii_terminal():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code = "import headscope.cli.main as m; m.app = lambda: m.say('\u2581 \u00e9'); m.main()"
    done = run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (0, "\\u2581 \\xe9\n"), done.stderr


def test_a_working_folder_that_is_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    code = "import os, headscope.cli.main as m; os.rmdir(os.getcwd()); m.app = os.getcwd; m.main()"
    one_line(run([sys.executable, "-c", code], cwd=tmp_path / "gone"), 2, "working folder is no longer there")


def test_a_full_disk():
    code = (
        "import errno, headscope.cli.main as m\n"
        "def f(): raise OSError(errno.ENOSPC, 'No space left', 'out/a.json')\n"
        "m.app = f\nm.main()"
    )
    one_line(run([sys.executable, "-c", code]), 2, "'out/a.json'", "No space left")


@pytest.mark.parametrize("sql", [b"SELECT '\xff'", b"\xed\xa0\x80"])
def test_invalid_bytes_in_sql(sql, tmp_path):
    with pytest.raises(ArgumentError, match="not UTF-8"):
        query(Store(tmp_path, create=True).to_arrow, os.fsdecode(sql))


def test_a_head_of_5000_digits():
    done = run([*HEADSCOPE, "params", "demo", "--heads", "L" + "1" * 5000 + "H0"], stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 1000
