"""Sweeps on a Ray cluster of several nodes, all on this machine: whatever dies, the store ends as an inline run's."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

import headscope as hs
from headscope.sweeps import engines
from headscope.sweeps.run import run_jobs
from tests import forked

PATIENCE_S = 300
"""How long a test waits for something that must happen."""

SETTINGS = {"scan": {"n_prompts": 128, "period": 8}}
"""Half a second of work for each tiny model: long enough to be killed in."""

RUN = "from headscope.cli.main import main; main()"

# Ray leaves sockets and pipes of its own for the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no jobs, and two nodes with one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # The checker of shapes wraps every function while testing, and its wrapper is no generator function.
        patch.setattr(engines, "_run_group", inspect.unwrap(engines._run_group))
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80_000_000, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
        made.add_node(num_cpus=1, **small)
        made.add_node(num_cpus=1, **small)
        yield made
        made.shutdown()


def until(what: Callable[[], Any]) -> Any:
    """Wait for it."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.02)
    pytest.fail(f"{what} did not happen in {PATIENCE_S} s")


def at_work(node: Any | None = None) -> list[psutil.Process]:
    """Worker processes in the middle of a task, which Ray tells by their title; all, or those of one node."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cmdline()[:1] == ["ray::_run_group"] and (node is None or process.ppid() == raylet(node)):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def raylet(node: Any) -> int:
    """The process that starts a node's workers."""
    return node.all_processes["raylet"][0].process.pid


@pytest.mark.slow
def test_ctrl_c_takes_down_the_cluster_that_the_sweep_started(save_models, tmp_path):
    driver = forked.headscope("sweep", *save_models(2), "--store", tmp_path / "store", "--engine", "ray")
    try:
        started = until(lambda: below(driver) if any(one.name() == "ray::_run_group" for one in below(driver)) else [])
        driver.send_signal(signal.SIGINT)
        out, err = driver.communicate()
        assert (driver.returncode, out) == (130, "")
        assert err.startswith("headscope: stopped by Ctrl-C; ")
        assert err.count("\n") == 1
        until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in started))
    finally:
        driver.close()


def below(process: forked.Forked) -> list[psutil.Process]:
    """The processes that it started, and those that these started."""
    return psutil.Process(process.pid).children(recursive=True)


@pytest.mark.soak
def test_a_driver_a_worker_and_a_node_die_and_nothing_is_lost(cluster, save_models, assert_same, tmp_path, capsys):
    folders, shaken = save_models(12), tmp_path / "shaken"
    inline = hs.sweep(folders, tmp_path / "inline", settings=SETTINGS)
    assert (inline.planned, inline.done, inline.failed) == (12, 12, 0)

    # The driver, in a process of its own, is killed as soon as it has kept two jobs.
    arguments = [*map(str, folders), "--store", str(shaken), "--n-prompts", "128", "--period", "8"]
    driver = subprocess.Popen(
        [sys.executable, "-c", RUN, "sweep", *arguments, "--engine", "ray", "--address", cluster.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with driver:
        until(lambda: driver.poll() is not None or len(list(shaken.glob("scan/*.parquet"))) >= 2)
        assert driver.poll() is None, driver.stdout.read().decode()
        driver.send_signal(signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in shaken.glob("scan/*.parquet")}
    assert 2 <= len(kept) < 9

    # Its successor sees a worker die in the middle of a job, then a node with a job on it.
    killed = []

    def progress(done: int, total: int) -> None:
        assert total == 12 - len(kept)
        if done == 1:
            worker = until(at_work)[0]
            worker.kill()
            killed.append(worker.pid)
        elif done == 3:
            node = next(one for one in cluster.list_all_nodes() if one is not cluster.head_node)
            until(lambda: at_work(node))
            cluster.remove_node(node, allow_graceful=False)
            killed.append(node)

    options: dict[str, Any] = {"settings": SETTINGS, "engine": "ray", "address": cluster.address}
    found = hs.sweep(folders, shaken, **options, progress=progress)
    assert len(killed) == 2
    assert capsys.readouterr().out == "", "Ray's own words are no result"
    assert (found.planned, found.done, found.skipped, found.failed) == (12, 12 - len(kept), len(kept), 0)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was done is not done again"
    assert_same(hs.open_store(shaken), hs.open_store(tmp_path / "inline"))
    assert hs.sweep(folders, shaken, **options).skipped == 12


def test_a_job_that_takes_its_workers_down_fails_and_the_rest_goes_on(cluster, save_models, tmp_path, monkeypatch):
    good, bomb = save_models(2)

    def deadly(jobs, loading, cpus):
        for job in jobs:
            if job.model == str(bomb) and job.what == "scan":
                os.kill(os.getpid(), signal.SIGKILL)
            yield from run_jobs([job], loading)

    monkeypatch.setattr(engines, "_run_group", deadly)
    monkeypatch.setattr(engines, "ATTEMPTS", 2)
    small = {"scan": {"n_prompts": 2, "period": 8}, "verify": {"n_prompts": 2, "period": 8, "top": 1}}
    options: dict[str, Any] = {"what": ("scan", "verify"), "settings": small}
    found = hs.sweep([good, bomb], tmp_path / "store", **options, engine="ray", address=cluster.address)
    assert (found.planned, found.done, found.failed) == (4, 3, 1)
    (one,) = found.failures
    assert (one.model, one.what, one.error) == (str(bomb), "scan", "WorkerDied")
    assert "its worker died 2 times (WorkerCrashedError); most often the machine's memory ran out" in one.reason


def test_a_job_that_fits_nowhere_is_told(save_models, tmp_path):
    with pytest.raises(hs.HeadscopeError, match="a job needs more than 0 CPUs"):
        hs.sweep(save_models(1), tmp_path / "store", engine="ray", cpus_per_job=0)


def test_a_cluster_that_is_not_there_is_told(save_models, tmp_path):
    with pytest.raises(hs.HeadscopeError, match="the Ray cluster at 127.0.0.1:9 cannot be reached: .*check --address"):
        hs.sweep(save_models(1), tmp_path / "store", engine="ray", address="127.0.0.1:9")
    with pytest.raises(hs.HeadscopeError, match="is a Ray client's address; give the cluster's own, HOST:PORT"):
        hs.sweep(save_models(1), tmp_path / "store", engine="ray", address="ray://127.0.0.1:10001")
