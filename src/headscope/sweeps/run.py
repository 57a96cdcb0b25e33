"""Run jobs: a job in, rows out, and nothing else changes.

A job that cannot be done becomes a failure with its reason; the next one runs.
"""

from __future__ import annotations

import gc
import hashlib
import json
import platform
import time
import traceback
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from headscope.errors import HeadscopeError, ModelError
from headscope.evidence.kinds import sweepable
from headscope.sweeps.plan import Job, content_of

if TYPE_CHECKING:
    from headscope.model.load import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How models are loaded; none of it changes a row."""

    device: str | None = None
    """As `headscope.load` takes it."""
    allow_pickle: bool = False
    """Also load pickled weights."""
    trust_remote_code: bool = False
    """Run model code that a repository brings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a job could not be done."""

    reason: str
    """One line: what happened, and what to do."""
    error: str
    """The kind of error."""
    traceback: str
    """Where it happened."""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """From an exception: the user's to fix, a lack of memory, or a defect."""
        text = "".join(traceback.format_exception(error))
        return cls(reason=_reason(error), error=type(error).__name__, traceback=text)

    @property
    def traceback_id(self) -> str:
        """Names the traceback; the same traceback has the same name."""
        return hashlib.sha256(self.traceback.encode(errors="backslashreplace")).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job: rows, or a failure."""

    job: Job
    """Which."""
    about: dict[str, Any]
    """What the table `jobs` will say of it."""
    rows: list[dict[str, Any]]
    """Its rows."""
    failure: Failure | None = None
    """Why there are none."""


def failed(job: Job, failure: Failure) -> Outcome:
    """The outcome of a job that could not be done."""
    return Outcome(job=job, about=_about(), rows=[], failure=failure)


def run_jobs(
    jobs: Sequence[Job], loading: Loading, *, ends: tuple[type[BaseException], ...] = (KeyboardInterrupt,)
) -> Iterator[Outcome]:
    """Load the model that these jobs share, once, and do one after the other.

    All fail if the files of a folder are no longer those that the jobs were planned for, and so are named by.

    Args:
        jobs: Of one model.
        loading: How to load it.
        ends: What ends the sweep. Anything else that a model raises, a panic of its tokenizer or an exit of its own
            code too, is a failure of its job.
    """
    started = time.perf_counter()
    try:
        model = _load(jobs[0], loading)
        _refuse_changed(jobs[0])
    except BaseException as error:  # a model's own code may exit, and a panic of Rust is no Exception
        if isinstance(error, ends):
            raise
        failure = Failure.of(error)
        yield from (failed(job, failure) for job in jobs)
        return
    load_s = time.perf_counter() - started
    for job in jobs:
        yield _run(model, job, load_s, ends)
        load_s = 0.0
    alive = weakref.ref(model.module)
    del model
    if alive() is not None:  # it holds itself in a circle, and the next model needs its room; seldom, and slow
        gc.collect()


def measure(model: Model, job: Job) -> Any:
    """The measurement itself."""
    return sweepable()[job.what].measure(model, **job.settings)


def _load(job: Job, loading: Loading) -> Model:
    from headscope.model.load import load

    return load(
        job.model,
        dtype=job.dtype,
        revision=job.commit,
        device=loading.device,
        allow_pickle=loading.allow_pickle,
        trust_remote_code=loading.trust_remote_code,
    )


def _refuse_changed(job: Job) -> None:
    if job.commit is None and content_of(job.model, None) != job.content:
        raise ModelError(f"{job.model!r} changed while the sweep ran; run it again.")


def _run(model: Model, job: Job, load_s: float, ends: tuple[type[BaseException], ...]) -> Outcome:
    started = time.perf_counter()
    try:
        result = measure(model, job)
        rows = sweepable()[job.what].rows(result)
    except BaseException as error:  # as above
        if isinstance(error, ends):
            raise
        return replace(failed(job, Failure.of(error)), about=_about(model) | {"load_s": load_s})
    about = _about(model) | {
        "kernels": ", ".join(result.provenance.kernels),
        "rows": len(rows),
        "tokens": result.timing.tokens,
        "versions": json.dumps(result.provenance.versions),
        "command": result.provenance.command,
        "load_s": load_s,
        "wall_s": time.perf_counter() - started,
    }
    return Outcome(job=job, about=about, rows=rows)


def _about(model: Model | None = None) -> dict[str, Any]:
    """What is known of the place, and of the model if it could be loaded."""
    here: dict[str, Any] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
    }
    if model is None:
        return here
    return here | {
        "family": model.family,
        "n_parameters": sum(weight.numel() for weight in model.module.parameters()),
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "n_kv_heads": model.n_kv_heads,
        "support": model.check.support,
        "support_reason": model.check.reason,
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _reason(error: BaseException) -> str:
    from headscope.model.memory import out_of_memory

    try:
        line = " ".join(str(error).split())[:300] or type(error).__name__
    except Exception:  # a model's own code may raise errors that cannot be printed
        line = type(error).__name__
    if isinstance(error, HeadscopeError):
        return line
    if out_of_memory(error):
        return f"memory ran out ({line}); use a smaller dtype, fewer jobs at a time, or a larger machine."
    return f"a defect in headscope or in the model's own code ({type(error).__name__}: {line}); report its traceback."
