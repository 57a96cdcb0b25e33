"""Kills at random moments inside the work: what is done afterwards equals a run that nobody disturbed.

    sweep      a child sweeps here and is killed; the same sweep again ends with the undisturbed store, row for row
    train      the same with a run of training: weights of all checkpoints bit for bit, and the log but for its seconds
    report     a child writes a report over an old one and is killed: the old page is whole until the new one is
    driver     the process that sweeps on a Ray cluster is killed, again and again, over one store
    worker     so are workers in the middle of a job

A child is forked from this process, which has imported everything, so that the moment of its death falls into the work.
It is drawn evenly over the time that an undisturbed child takes. Children that end before it are not counted.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import psutil

import headscope as hs
from benchmarks.tiny import tiny_causal_lm

TIMES = ("load_s", "wall_s", "finished", "host", "command")
"""Columns of `jobs` that differ from run to run."""
FAMILIES = ("llama", "gpt2", "qwen2")
SWEEP = {"scan": {"n_prompts": 64, "period": 8}}
MOST_TRIES = 4
"""Children for each kill that is asked for, since some end before it comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kills:
    """What came of one kind."""

    killed: int
    """Processes killed in the middle of their work."""
    defects: tuple[str, ...]
    """What differed from the undisturbed run."""


def in_child(work: Callable[[], Any], *, kill_after: float | None = None) -> tuple[bool, float]:
    """Do something in a fork of this process: whether it was killed, and after how many seconds it ended."""
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        while time.monotonic() - started < kill_after and os.waitpid(pid, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        if not psutil.pid_exists(pid):
            return False, time.monotonic() - started
        os.kill(pid, signal.SIGKILL)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ended in (0, -signal.SIGKILL), f"the child ended with {ended}"
    return ended == -signal.SIGKILL, time.monotonic() - started


def _killed(
    number: int, random: Random, work: Callable[[Path], Any], same: Callable[[Path, Path], str | None]
) -> Kills:
    """Kill as many children, each with a place of its own; do the work to its end, and compare."""
    defects: list[str] = []
    killed = 0
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        _, took = in_child(lambda: work(root / "whole"))
        for attempt in range(MOST_TRIES * number):
            if killed == number:
                break
            place = root / str(attempt)
            after = random.uniform(0, took)
            was, _ = in_child(lambda place=place: work(place), kill_after=after)
            if not was:
                continue
            killed += 1
            in_child(lambda place=place: work(place))
            if problem := same(root / "whole", place):
                defects.append(f"killed after {after:.3f} s of {took:.3f}: {problem}")
    return Kills(killed=killed, defects=tuple(defects))


def models(folder: Path, number: int) -> list[Path]:
    """Tiny models of three families, each with its own weights."""
    made = []
    for seed in range(number):
        family = FAMILIES[seed % len(FAMILIES)]
        made.append(folder / f"{family}-{seed}")
        tiny_causal_lm(family, seed=seed).save_pretrained(made[-1])
    return made


def sweeps(number: int, *, seed: int = 0) -> Kills:
    """Sweeps in one process."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = models(Path(scratch), 3)
        hs.sweep(folders[:1], Path(scratch) / "warm", settings=SWEEP)
        return _killed(number, Random(seed), lambda place: hs.sweep(folders, place, settings=SWEEP), differing_stores)


def differing_stores(whole: Path, given: Path) -> str | None:
    """What two stores do not share; None where they hold the same."""
    for table in ("jobs", "scan"):
        one, other = (
            hs.open_store(path).to_frame(table).drop(columns=list(TIMES), errors="ignore") for path in (whole, given)
        )
        try:
            pd.testing.assert_frame_equal(one, other, check_exact=True)
        except AssertionError as error:
            return f"{table}: {' '.join(str(error).split())[:200]}"
    return None


def runs(number: int, *, seed: int = 0) -> Kills:
    """Runs of training."""
    settings: dict[str, Any] = {
        "heads": 2, "d_model": 16, "steps": 12, "checkpoint_every": 4, "device": "cpu",
    }  # fmt: skip

    def work(place: Path) -> None:
        hs.train("copy", out=place, **settings)

    with tempfile.TemporaryDirectory() as scratch:
        work(Path(scratch) / "warm")
    return _killed(number, Random(seed), work, differing_runs)


def differing_runs(whole: Path, given: Path) -> str | None:
    """The same for two runs."""
    names = [sorted(path.name for path in folder.iterdir()) for folder in (whole, given)]
    if names[0] != names[1]:
        return f"files {names[1]}, not {names[0]}"
    for path in whole.glob("step-*/model.safetensors"):
        if path.read_bytes() != (given / path.relative_to(whole)).read_bytes():
            return f"the weights of {path.parent.name}"
    logs = [[json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (whole, given)]
    for row in (*logs[0], *logs[1]):
        row.pop("wall_s")
    return None if logs[0] == logs[1] else "the log"


def reports(number: int, *, seed: int = 0) -> Kills:
    """Reports written over an old one."""
    with tempfile.TemporaryDirectory() as scratch:
        (folder,) = models(Path(scratch), 1)
        model = hs.load(folder)
        probe = hs.repeated_tokens(model, n_prompts=4, period=8)
        parts: dict[str, Any] = {
            "scan": hs.scan(model, probe=probe),
            "verification": hs.verify(model, probe=probe, top=1),
        }  # fmt: skip

        def work(place: Path) -> None:
            if not place.exists():
                place.mkdir()
                (place / "report.html").write_text("old")
            hs.report(model, place / "report.html", **parts)

        def differing(whole: Path, given: Path) -> str | None:
            pages = [  # but for the seconds, and the folder in the call that a page holds
                re.sub(rb'"wall_s": ?[0-9.e-]+', b"", (folder / "report.html").read_bytes()).replace(
                    str(folder).encode(), b""
                )
                for folder in (whole, given)
            ]
            return None if pages[0] == pages[1] else "the page"

        return _killed(number, Random(seed), work, differing)


def on_ray(number: int, *, seed: int = 0) -> dict[str, Kills]:
    """Drivers, then workers, of a cluster of two nodes on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with _cluster() as address, tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        folders = models(root / "models", max(6, number))
        hs.sweep(folders, root / "whole", settings=SWEEP)

        def work(store: str) -> None:
            options: dict[str, Any] = {"engine": "ray", "address": address, "retry_failed": True}
            hs.sweep(folders, root / store, settings=SWEEP, **options)

        random = Random(seed)
        return {
            "driver": _drivers(number, random, work, root),
            "worker": _workers(number, random, work, root),
        }


@contextmanager
def _cluster() -> Iterator[str]:
    """The address of a cluster of two nodes, kept by a child: a process that has met Ray cannot be forked any more."""
    ours, theirs = Pipe()
    pid = os.fork()
    if pid == 0:
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80_000_000, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, **small)
            theirs.send(cluster.address)
            theirs.recv()
        finally:
            cluster.shutdown()
            os._exit(0)
    assert ours.poll(120), "Ray's cluster did not start"
    try:
        yield ours.recv()
    finally:
        ours.send("enough")
        os.waitpid(pid, 0)


def _drivers(number: int, random: Random, work: Callable[[str], None], root: Path) -> Kills:
    killed, defects = 0, []
    for attempt in range(MOST_TRIES * number):
        store = f"driver-{killed // 4}"  # the same store is disturbed four times, then a new one is begun
        done = len(list((root / store).glob("scan/*.parquet")))
        pid = os.fork()
        if pid == 0:
            try:
                work(store)
            finally:
                os._exit(0)
        # From its first outcome on it is inside the work.
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and len(list((root / store).glob("scan/*.parquet"))) == done:
            time.sleep(0.01)
        if psutil.pid_exists(pid):
            time.sleep(random.uniform(0, 0.5))
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                killed += 1
        whole = len(list((root / store).glob("scan/*.parquet"))) == len(list((root / "whole").glob("scan/*.parquet")))
        if killed == number or (killed and killed % 4 == 0) or whole:
            in_child(lambda store=store: work(store))
            if problem := differing_stores(root / "whole", root / store):
                defects.append(f"driver {attempt}: {problem}")
        if killed == number:
            break
    return Kills(killed=killed, defects=tuple(defects))


def _workers(number: int, random: Random, work: Callable[[str], None], root: Path) -> Kills:
    """Workers die while one driver goes on; a job that lost three of them is tried again by the next sweep."""
    killed, store, defects = 0, 0, []
    while killed < number and store < MOST_TRIES * number:
        name = f"worker-{store}"
        store += 1
        pid = os.fork()
        if pid == 0:
            try:
                work(name)
            finally:
                os._exit(0)
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if killed < number and (found := _at_work()):
                time.sleep(random.uniform(0, 0.3))
                one = random.choice(found)
                try:
                    if one.cmdline()[:1] == ["ray::_run_group"]:
                        one.kill()
                        killed += 1
                except (psutil.NoSuchProcess, psutil.ZombieProcess):
                    pass
            time.sleep(0.05)
        in_child(lambda name=name: work(name))
        if problem := differing_stores(root / "whole", root / name):
            defects.append(f"{name}: {problem}")
    return Kills(killed=killed, defects=tuple(defects))


def _at_work() -> list[psutil.Process]:
    """Worker processes below this one's cluster in the middle of a task, which Ray tells by their title."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:1] == ["ray::_run_group"]:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
            continue
    return found
