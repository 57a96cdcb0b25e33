"""Ctrl-C at random moments in every command: exit code 130, a last line that says so, no traceback.

Each command runs once undisturbed, for its time and its own exit code; every interrupted run ends like it, or with 130.
The moment is drawn evenly over that time, from the first line of our own file on, so that some fall into the import of
libraries.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import headscope as hs
from headscope.training.demo import demo_path

_BEGUN = "import sys; from headscope.__main__ import main; print('begun', flush=True); main()"
_FEW = ("--n-prompts", "6", "--period", "24")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupts:
    """What came of them, over all commands."""

    sent: int
    """Runs that were still going when the signal came."""
    defects: tuple[str, ...]
    """Runs that ended in another way."""


def commands(root: Path) -> dict[str, list[str]]:
    """Each command on small inputs, with results below a folder; `explore` ends by a signal alone, and is not here."""
    store = root / "store"
    hs.sweep([demo_path()], store, settings={"scan": {"n_prompts": 2, "period": 8}})
    out = str(root / "out")
    return {
        "scan": ["scan", "demo", "--out", out],
        "verify": ["verify", "demo", *_FEW, "--out", out],
        "circuit": ["circuit", "demo", *_FEW, "--out", out],
        "report": ["report", "demo", "--out", str(root / "report.html")],
        "atlas": ["atlas", "demo", "--quick", "--n-prompts", "8", "--out", str(root / "atlas")],
        "compare": ["compare", "demo", "demo", *_FEW, "--out", out],
        "behavior": ["behavior", "sycophancy", "demo", "--out", out],
        "check": ["check", "demo"],
        "params": ["params", "demo"],
        "sweep": ["sweep", str(demo_path()), "--store", str(root / "new"), *_FEW],
        "query": ["query", str(store), "SELECT model FROM jobs"],
        "mosaic": ["mosaic", str(store), "--out", str(root / "mosaic.svg")],
        "train": ["train", "--steps", "40", "--out", str(root / "run")],
        "known": ["known"],
    }


def interrupts(number: int, *, seed: int) -> Interrupts:
    """Interrupt each command so many times."""
    random, sent, defects = Random(seed), 0, []
    with TemporaryDirectory() as folder:
        for name, arguments in commands(Path(folder)).items():
            started = time.monotonic()
            process = _begin(arguments)
            _, errors = process.communicate(timeout=600)
            whole, own = time.monotonic() - started, process.returncode
            if own not in (0, 2):
                defects.append(f"{name} undisturbed: exit code {own}: {errors[-300:]}")
                continue
            for _ in range(number):
                process = _begin(arguments)
                time.sleep(random.uniform(0, 0.9 * whole))
                sent += process.poll() is None
                process.send_signal(signal.SIGINT)
                _, errors = process.communicate(timeout=600)
                defects += [f"{name}: {one}" for one in _wrong(process.returncode, own, errors)]
    return Interrupts(sent=sent, defects=tuple(defects))


def _begin(arguments: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _BEGUN, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # what runs in a shell's background ignores Ctrl-C, and hands that on
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def _wrong(code: int, own: int, errors: str) -> Iterator[str]:
    lines = errors.strip().splitlines()
    if "Traceback" in errors:
        yield f"a traceback: {errors[-300:]}"
    elif code not in (own, 130):
        yield f"exit code {code}: {errors[-300:]}"
    elif code == 130 and not (lines and lines[-1].startswith("headscope: stopped by Ctrl-C; ")):
        yield f"130 without a word of it: {errors[-300:]}"
