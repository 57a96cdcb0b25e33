"""Two ways to run jobs: here, or on Ray. Both take groups of jobs that share a model, and give outcomes as they come.

On Ray a group is one task, which loads its model once and hands back each outcome when it is there. Tasks are given
out as the cluster has room, so that what another sweep has done meanwhile is not done again. When a worker or its node
dies, the jobs whose outcome has not arrived are given out again; a job during which workers died `ATTEMPTS` times is a
failure. Outcomes come to this process, which alone writes to the store: workers need the models, not the store.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

import logging
import os
import socket
import sys
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from threading import current_thread
from typing import Any

from headscope.errors import ArgumentError, HeadscopeError
from headscope.stopping import uninterrupted
from headscope.sweeps.plan import Job
from headscope.sweeps.run import Failure, Loading, Outcome, failed, run_jobs

ATTEMPTS = 3
"""How often a job may take its worker down before it counts as failed."""

OBJECT_STORE_BYTES = 80_000_000
"""Shared memory of a Ray that is started here: outcomes are small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What Ray is told."""

    address: str | None = None
    """Of a running cluster; None starts one here."""
    cpus_per_job: float | int = 1
    """CPUs, and threads, of each job."""
    gpus_per_job: float | int = 0
    """GPUs of each job."""


KNOCK_S = 10.0
"""How long a cluster may take to answer at all."""


class _WithoutRay:
    """A stream without what Ray's own thread prints to it: a worker's death is no line of our results."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if current_thread().name == "ray_listen_error_messages":
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class WorkerDied(HeadscopeError):
    """A job took its worker down."""


def inline(groups: Iterable[list[Job]], loading: Loading) -> Iterator[Outcome]:
    """One job after the other, in this process."""
    for group in groups:
        yield from run_jobs(group, loading)


def on_ray(groups: Iterable[list[Job]], loading: Loading, cluster: Cluster) -> Iterator[Outcome]:
    """Groups side by side on a Ray cluster.

    Raises:
        ArgumentError: Ray is not installed, the cluster cannot be reached, or has no node with room for a job.
    """
    if not cluster.cpus_per_job > 0 or cluster.gpus_per_job < 0:
        raise ArgumentError(
            f"cpus_per_job={cluster.cpus_per_job}, gpus_per_job={cluster.gpus_per_job}; a job needs more than 0 CPUs."
        )
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ArgumentError("engine='ray' needs Ray; install headscope[sweep], or use engine='inline'.") from error
    waiting = iter(groups)
    again = list(islice(waiting, 1))
    if not again:
        return  # nothing to do: Ray need not start
    deaths: Counter[str | None] = Counter()
    with uninterrupted() as asked, _connected(cluster), redirect_stdout(_WithoutRay(sys.stdout)):  # pyright: ignore[reportArgumentType]
        task: Any = ray.remote(_run_group).options(
            num_cpus=cluster.cpus_per_job, num_gpus=cluster.gpus_per_job, max_retries=0, num_returns="streaming"
        )
        running: dict[Any, list[Job]] = {}
        try:
            while not asked():
                while len(running) < 2 * _room(cluster):
                    group = again.pop() if again else next(waiting, None)
                    if group is None:
                        break
                    running[task.remote(group, loading, cluster.cpus_per_job)] = group
                if not running:
                    return
                ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0, fetch_local=False)
                stream: Any
                for stream in ready:
                    jobs = running[stream]
                    try:
                        outcome: Any = ray.get(next(stream))
                    except StopIteration:
                        del running[stream]
                        continue
                    except RayTaskError as error:
                        raise _cannot_run(error) from error
                    except RayError as error:
                        del running[stream]
                        suspect = jobs[0].identity if jobs else None  # none: it died after its last outcome
                        deaths[suspect] += 1
                        if suspect and deaths[suspect] == ATTEMPTS:
                            yield failed(jobs[0], Failure.of(_death(error)))
                            jobs = jobs[1:]
                        if jobs:
                            again.append(jobs)
                        continue
                    running[stream] = [job for job in jobs if job.identity != outcome.job.identity]
                    yield outcome
        finally:
            for stream in running:
                ray.cancel(stream, force=True)


def _run_group(jobs: list[Job], loading: Loading, cpus: float | int) -> Iterator[Outcome]:
    """What a worker does: `run_jobs`, quietly, on as many threads as it was given CPUs."""
    import torch
    from transformers.utils import logging as chatter

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(max(1, int(cpus)))
    warnings.simplefilter("ignore")
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    yield from run_jobs(jobs, loading, ends=(KeyboardInterrupt, SystemExit))  # Ray ends a worker by SystemExit


@contextmanager
def _connected(cluster: Cluster) -> Generator[None, None, None]:
    """A connection to the cluster: the one that this process has, or a new one for as long as the block runs."""
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else a warning about GPUs where there are none
    own: dict[str, Any] = {"address": cluster.address}
    if cluster.address is None:
        own = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    _knock(cluster.address)
    try:
        ray.init(**own, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(cluster.address or "this machine", error) from error
    try:
        yield
    finally:
        with redirect_stdout(StringIO()):  # what Ray has kept back of its words comes now
            ray.shutdown()


def _knock(address: str | None) -> None:
    """Whether anything answers at HOST:PORT; Ray itself would go on trying for minutes."""
    if (address or "").startswith("ray://"):
        raise ArgumentError(f"{address!r} is a Ray client's address; give the cluster's own, HOST:PORT, usually 6379.")
    host, _, port = (address or "").rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        return  # `auto`, `local`, or something that Ray knows
    try:
        socket.create_connection((host.rpartition("/")[2], int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise _unreachable(address or "", error) from error


def _unreachable(where: str, error: Exception) -> ArgumentError:
    why = " ".join(str(error).split())[:200]
    return ArgumentError(
        f"the Ray cluster at {where} cannot be reached: {why}; check --address, or leave it out to start Ray here."
    )


def _room(cluster: Cluster) -> int:
    """Jobs that the nodes alive now can run at once."""
    import ray

    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            by_cpu = int(has.get("CPU", 0) / cluster.cpus_per_job)
            by_gpu = int(has.get("GPU", 0) / cluster.gpus_per_job) if cluster.gpus_per_job else by_cpu
            room += min(by_cpu, by_gpu)
    if room == 0 and cluster.address is None:
        raise ArgumentError(
            f"no job fits: it needs {cluster.cpus_per_job:g} CPUs and {cluster.gpus_per_job:g} GPUs at once; ask for "
            "less with --cpus-per-job and --gpus-per-job, or give the --address of a larger cluster."
        )
    return max(1, room)  # a cluster that grows on demand has to be asked


def _death(error: Exception) -> WorkerDied:
    kind = type(error).__name__
    return WorkerDied(
        f"its worker died {ATTEMPTS} times ({kind}); most often the machine's memory ran out: run fewer jobs at a time "
        "(--cpus-per-job), use a smaller dtype, or a larger machine, then --retry-failed."
    )


def _cannot_run(error: Exception) -> Exception:
    """What to raise for an error around a job, which no job has caught."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, ImportError) or "No module named" in str(error):
        return ArgumentError(
            "the cluster's workers cannot import headscope; install the same version of it on every node."
        )
    return error
