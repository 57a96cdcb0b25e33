"""A sweep: every model with every kind of measurement, into a store that the same command goes on filling.

    planned = done + skipped + failed        + left, only when it was interrupted

Jobs of one model run one after the other, so that the model is loaded once. Models come in random order: the time that
is left can then be estimated from the jobs done so far, and two sweeps into one store meet late. Just before a model's
turn the store is asked again which of its jobs are still to do. Two sweeps may still do the same job at the same time;
that costs time, and the store keeps one result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from headscope.errors import ArgumentError
from headscope.records.document import WrittenDocument
from headscope.sweeps.engines import Cluster, inline, on_ray
from headscope.sweeps.plan import Job, Plan, make_plan
from headscope.sweeps.run import Failure, Loading, failed
from headscope.sweeps.store import DamagedFile, Store

ENGINES = ("inline", "ray")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedJob:
    """A job of the sweep that has no rows."""

    model: str
    """Hub id, `demo`, or the absolute path of a folder."""
    revision: str | None
    """As it was asked for."""
    what: str
    """What was to be measured."""
    reason: str
    """What happened, and what to do."""
    error: str
    """The kind of error."""
    traceback: str
    """Its traceback in the store: `open_store(...).traceback(id)`."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Sweep(WrittenDocument):
    """What became of a sweep's jobs."""

    schema: ClassVar[str] = "headscope.sweep/1"
    planned: int
    """Jobs in all, each once."""
    done: int
    """Finished by this sweep."""
    skipped: int
    """Found finished in the store."""
    failed: int
    """Failed now, or before and not tried again."""
    store: str
    """Where the results are."""
    failures: tuple[FailedJob, ...]
    """The jobs that failed, with reasons."""
    damaged: tuple[DamagedFile, ...] = ()
    """What this sweep found damaged, and set aside in the store's folder `damaged`; its own jobs were done again."""

    def __repr__(self) -> str:
        return f"Sweep({self.store}: {self.done} done, {self.skipped} skipped, {self.failed} failed of {self.planned})"


def sweep(
    models: Sequence[str | Path],
    store: str | Path,
    *,
    what: Sequence[str] = ("scan",),
    revisions: Sequence[str] = (),
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    engine: str = "inline",
    address: str | None = None,
    cpus_per_job: float | int = 1,
    gpus_per_job: float | int = 0,
    retry_failed: bool = False,
    device: str | None = None,
    dtype: str = "auto",
    allow_pickle: bool = False,
    trust_remote_code: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Sweep:
    """Measure many models and keep every result; run it again to go on where it stopped.

    Args:
        models: Hub ids, folders or `demo`. `ID@REVISION` names a revision of a hub model.
        store: A folder or a URL that fsspec can open; made if need be.
        what: `scan`, `verify`, `circuit`, `icl`.
        revisions: Of each hub model that names none itself; by default its main branch.
        settings: By kind, like `{"scan": {"n_prompts": 32}}`.
        engine: `inline`, one job after the other in this process, or `ray`.
        address: Of a running Ray cluster; by default Ray is started here and stopped at the end.
        cpus_per_job: CPUs that Ray gives each job, which is also its number of threads.
        gpus_per_job: GPUs that Ray gives each job.
        retry_failed: Try jobs again that failed before. Jobs whose model has changed since are always tried.
        device: As `headscope.load` takes it.
        dtype: As `headscope.load` takes it.
        allow_pickle: Also load weights that are not safetensors.
        trust_remote_code: Run model code that a repository brings.
        progress: Called with (jobs done, jobs to do) after each job; what was done before is not counted.

    Raises:
        ArgumentError: no model, a string where a list belongs, an unknown kind, setting or engine, or a place that
            cannot be a store.
    """
    if engine not in ENGINES:
        raise ArgumentError(f"engine={engine!r} is not known; use one of {', '.join(ENGINES)}.")
    plan = make_plan(models, revisions=revisions, what=what, settings=settings, dtype=dtype)
    kept = Store(store, create=True)
    damaged = kept.set_aside([*plan.jobs, *(one.job for one in plan.refused)])
    for one in plan.refused:
        kept.put(failed(one.job, Failure.of(one.error)))
    before = kept.state(plan.jobs)
    kept.forget_failures([job for job in plan.jobs if before.get(job.identity) == "done"])
    settled = ("done",) if retry_failed else ("done", "failed")
    todo = {job.identity: job for job in plan.jobs if before.get(job.identity) not in settled}
    groups = _groups(plan, todo, kept)
    loading = Loading(device=device, allow_pickle=allow_pickle, trust_remote_code=trust_remote_code)
    cluster = Cluster(address=address, cpus_per_job=cpus_per_job, gpus_per_job=gpus_per_job)
    outcomes = inline(groups, loading) if engine == "inline" else on_ray(groups, loading, cluster)
    done = 0
    for tried, outcome in enumerate(outcomes, start=1):
        kept.put(outcome)
        done += outcome.failure is None
        if progress is not None:
            progress(tried, len(todo))
    failures = _failures(plan, kept)
    return Sweep(
        planned=len(plan.jobs) + len(plan.refused),
        done=done,
        skipped=len(plan.jobs) + len(plan.refused) - done - len(failures),
        failed=len(failures),
        store=str(store),
        failures=failures,
        damaged=damaged,
    )


def _groups(plan: Plan, todo: dict[str, Job], store: Store) -> Iterator[list[Job]]:
    """The jobs of each model that are still to do when its turn comes, models in random order.

    A job that another sweep has finished by then leaves `todo`.
    """
    groups = plan.groups()
    random.SystemRandom().shuffle(groups)
    for group in groups:
        wanted: list[Job] = []
        for job in group:
            if job.identity in todo and store.has(job):
                del todo[job.identity]
            elif job.identity in todo:
                wanted.append(job)
        if wanted:
            yield wanted


def _failures(plan: Plan, store: Store) -> tuple[FailedJob, ...]:
    rows = {row["job"]: row for row in store.failures()}
    jobs = [job for job in (*plan.jobs, *(one.job for one in plan.refused)) if job.identity in rows]
    return tuple(
        FailedJob(**{field.name: rows[job.identity][field.name] for field in fields(FailedJob)})
        for job in jobs
        if not store.has(job)
    )
