"""A store: the results of many sweeps, one Parquet file for each finished job, in a folder or at any fsspec URL.

    STORE/headscope-store.json      {"schema": "headscope.store/1"}
    STORE/scan/<identity>.parquet   rows of one job; its record is in the file's metadata. So verify, circuit, icl
    STORE/failed/<request>.<identity>.parquet   the record of a job that failed, until it succeeds
    STORE/tracebacks/<id>.txt       where it failed
    STORE/damaged/                  what a sweep found damaged and measured again

The identity of a job is the name of its file, so two sweeps that finish the same job leave one file. Each file is
written under a temporary name and renamed: a reader sees a whole file or none, and a sweep that is killed leaves at
most a temporary file, which nobody reads. A job is done when its file is whole and its own
(`headscope.sweeps.job_file`): whatever reads the store names the files that are not, and the next sweep sets them
aside. A file that was removed cannot be named; its job is one that is still to do.

Cost: a table is read in one go, many files at a time. A sweep reads the files of its own jobs that are done.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import ArgumentError
from headscope.records.files import write_whole
from headscope.stopping import uninterrupted
from headscope.sweeps.job_file import (
    ENDING,
    FAILED,
    FOLDERS,
    SCHEMA,
    Damaged,
    check,
    is_name,
    place,
    record_of,
    table_of,
    written,
)
from headscope.sweeps.plan import KINDS, Job
from headscope.sweeps.run import Outcome
from headscope.sweeps.tables import arrow_schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from headscope.evidence.compare.result import Comparison
    from headscope.sweeps.over_steps import RoleOverSteps

READERS = 16
"""Files that are read at once: most of the time of reading from afar is waiting."""

NAMED = 5
"""Damaged files that an error names; of more it gives the number."""

_MARK = "headscope-store.json"


def is_store(path: str) -> bool:
    """Whether a name is that of a store: a URL, or a folder with a store's mark."""
    return "://" in path or (Path(path) / _MARK).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedFile:
    """Something in a store that is not what its name says."""

    name: str
    """In the store, like `scan/<identity>.parquet`."""
    why: str
    """In what way."""


def open_store(path: str | Path) -> Store:
    """The store that a sweep filled.

    Args:
        path: A folder, or a URL that fsspec can open, like `s3://bucket/sweep`.

    Raises:
        ArgumentError: there is no store.
    """
    return Store(path)


class Store:
    """Results of sweeps. Made by `headscope.open_store`.

    Args:
        path: A folder, or a URL that fsspec can open.
        create: Make the store if there is none.

    Raises:
        ArgumentError: there is no store, or something else is there.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        from fsspec.core import url_to_fs

        self.path: str = str(path)
        try:
            fs, root = url_to_fs(self.path)
        except (ImportError, ValueError) as error:
            raise ArgumentError(f"{self.path!r} is no store that can be opened: {_line(error)}.") from error
        self._fs: Any = fs
        self._root = str(root).rstrip("/")
        try:
            self._open(create)
        except OSError as error:
            raise ArgumentError(f"the store {self.path!r} cannot be opened: {_line(error)}.") from error

    def _open(self, create: bool) -> None:
        mark = self._at(_MARK)
        if not self._fs.exists(mark):
            if not create:
                raise ArgumentError(f"{self.path!r} is no store; give the folder or URL that a sweep filled.")
            others = self._names("")
            if others and not self._fs.exists(mark):  # another sweep may just have made the store
                raise ArgumentError(
                    f"{self.path!r} holds other things ({others[0]}); give a new or empty folder as the store."
                )
            if not others:
                self._write(_MARK, (json.dumps({"schema": SCHEMA}) + "\n").encode())
        try:
            schema = json.loads(self._fs.cat_file(mark)).get("schema")
        except (AttributeError, RecursionError, ValueError) as error:
            raise ArgumentError(f"{self.path!r} is no store: its {_MARK} is damaged.") from error
        if schema != SCHEMA:
            raise ArgumentError(f"{self.path!r} is a store of schema {schema!r}; this headscope reads {SCHEMA!r}.")

    def has(self, job: Job) -> bool:
        """Whether the job's rows are here, and whole."""
        return self._whole(place(job))

    def state(self, jobs: Iterable[Job]) -> dict[str, str]:
        """`done` or `failed` by identity, for those of these jobs that were tried.

        A job whose model has changed since it failed was not tried, nor one whose file is damaged.
        """
        jobs = list(jobs)
        there = {f"{kind}/{name}" for kind in KINDS for name in self._names(kind)}
        tried = {name.split(".")[1] for name in self._names(FAILED) if name.count(".") == 2}
        done = {place(job) for job in jobs} & there
        with ThreadPoolExecutor(READERS) as pool:
            whole = {name for name, good in zip(done, pool.map(self._whole, done), strict=True) if good}
        states = {job.identity: "done" if place(job) in whole else "failed" for job in jobs}
        return {name: state for name, state in states.items() if state == "done" or name in tried}

    def set_aside(self, jobs: Iterable[Job]) -> tuple[DamagedFile, ...]:
        """Move what is damaged into the folder `damaged`, so that these jobs can be done again; what that was.

        Looked at are the files of these jobs, those of all jobs that failed, and names that no job has.
        """
        wanted = {job.identity for job in jobs}
        found: list[DamagedFile] = []
        for folder in (*FOLDERS, "tracebacks"):
            if (problem := self._no_folder(folder)) is not None:
                found.append(problem)
                continue
            for name in self._names(folder) if folder in FOLDERS else ():
                own = f"{folder}/{name}"
                looked_at = folder == FAILED or not is_name(own) or name.removesuffix(ENDING) in wanted
                if name.endswith(ENDING) and looked_at:
                    problem = self._problem(own)
                    found += [] if problem is None else [problem]
        for one in found:
            self._move(one.name, f"damaged/{one.name.replace('/', '.')}.{uuid.uuid4().hex[:8]}")
        return tuple(found)

    def failures(self) -> list[dict[str, Any]]:
        """The rows of `jobs` that failed."""
        return self._read(FAILED, record_of)

    def put(self, outcome: Outcome) -> None:
        """Keep what became of a job. A success replaces the failures of the same request; a failure, those before it.

        A failure never replaces rows.
        """
        job, failure = outcome.job, outcome.failure
        name = place(job, done=False)
        if failure is None:
            self._write(place(job), written(outcome))
        elif not self.has(job):
            self._write(f"tracebacks/{failure.traceback_id}.txt", failure.traceback.encode(errors="backslashreplace"))
            self._write(name, written(outcome))
        for old in self._names("failed"):
            same = job.request in old or (job.identity in old and failure is None)
            if same and (failure is None or f"failed/{old}" != name):
                self._remove(f"failed/{old}")

    def forget_failures(self, done: Iterable[Job]) -> None:
        """Remove the failures of these jobs' requests, like those of a time when the hub could not be reached."""
        requests = {job.request for job in done}
        for name in self._names("failed"):
            if name.split(".")[0] in requests:
                self._remove(f"failed/{name}")

    def to_frame(self, table: str = "scan") -> pd.DataFrame:
        """One table of all jobs: `scan`, `verify`, `circuit`, `icl`, or `jobs` with one row per job.

        Raises:
            ArgumentError: there is no such table, or a file of it is damaged.
        """
        return self.to_arrow(table).to_pandas()

    def query(self, sql: str) -> pd.DataFrame:
        """The answer to one SELECT over the tables `scan`, `verify`, `circuit`, `icl` and `jobs`; nothing else is run.

        Raises:
            ArgumentError: not one SELECT, an error in it, something that reaches outside of the store, or a damaged
                file.
        """
        from headscope.sweeps.query import query

        return query(self.to_arrow, sql)

    def emergence(self, model: str, *, detector: str = "induction") -> RoleOverSteps:
        """How a role emerged over the revisions of a model that were swept: the strongest head at each step.

        Args:
            model: Hub id, or the absolute path of the folder that holds the checkpoints.
            detector: Which role.

        Raises:
            ArgumentError: there is no such scan, or two of one step.
        """
        from headscope.sweeps.over_steps import over_steps

        jobs = self.to_arrow("jobs").to_pylist()
        return over_steps(jobs, self.to_frame("scan"), model, detector=detector, store=self.path)

    def compare(self) -> Comparison:
        """What differs between the models that were scanned: each beside the first, and which are most alike.

        Raises:
            ArgumentError: fewer than two scans, or scans with other prompts.
        """
        from headscope.evidence.compare.scans import compare_scans
        from headscope.sweeps.scans import scans_of

        tables = (self.to_arrow(name).to_pylist() for name in ("jobs", "scan"))
        return compare_scans(scans_of(*tables, store=self.path))

    def to_arrow(self, table: str) -> pa.Table:
        """The same as an Arrow table, ordered by model and job."""
        import pyarrow as pa

        schema = arrow_schema(table)
        if table == "jobs":
            rows = self._read(FOLDERS, record_of)
            rows.sort(key=lambda row: (row["model"], row["revision"] or "", row["what"], row["job"]))
            return pa.Table.from_pylist(rows, schema=schema)
        parts = self._read(table, table_of)
        parts = sorted((part for part in parts if len(part)), key=_place)
        return pa.concat_tables([schema.empty_table(), *parts])

    def traceback(self, name: str) -> str:
        """The traceback that a failure names.

        Raises:
            ArgumentError: there is no such traceback.
        """
        if not name.isalnum() or not self._fs.exists(self._at(f"tracebacks/{name}.txt")):
            raise ArgumentError(f"the store {self.path!r} has no traceback {name!r}.")
        return self._fs.cat_file(self._at(f"tracebacks/{name}.txt")).decode()

    def __repr__(self) -> str:
        return f"Store({self.path!r})"

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _names(self, folder: str) -> list[str]:
        """What a folder holds; names that begin with a dot are files being written."""
        if self._no_folder(folder) is not None:
            return []
        paths = self._listed(folder)
        return sorted(name for path in paths if not (name := path.rstrip("/").rsplit("/", 1)[-1]).startswith("."))

    def _listed(self, folder: str) -> list[str]:
        """The paths in a folder; for a file, the file's own path; none where there is neither."""
        self._fs.invalidate_cache()
        try:
            return self._fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []

    def _no_folder(self, folder: str) -> DamagedFile | None:
        """What is wrong where a folder of the store should be; None where it is one, or not there yet."""
        here = self._at(folder)
        broken = self._local and os.path.islink(here) and not os.path.exists(here)
        if not broken and [path.rstrip("/") for path in self._listed(folder)] != [here]:
            return None
        return DamagedFile(name=folder, why="it is no folder")

    def _content(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none.

        Raises:
            Damaged: something else has its name, or it cannot be read.
        """
        path = self._at(name)
        try:
            if self._local and not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
                raise Damaged("it is no file")
            return self._fs.cat_file(path)
        except FileNotFoundError as error:
            if self._local and os.path.islink(path):
                raise Damaged("it is a link to a file that is not there") from error
            return None
        except OSError as error:
            raise Damaged(_line(error)) from error

    def _problem(self, name: str) -> DamagedFile | None:
        """What is wrong with a file; None where it is whole, or gone."""
        try:
            content = self._content(name)
            if content is not None:
                check(name, content)
        except Damaged as error:
            return DamagedFile(name=name, why=str(error))
        return None

    def _whole(self, name: str) -> bool:
        """Whether a file is there, whole and its own."""
        return bool(self._fs.exists(self._at(name))) and self._problem(name) is None

    def _read(self, folders: str | Iterable[str], one: Callable[[str, bytes], Any]) -> list[Any]:
        """Each file of these folders; those that another sweep removes meanwhile are passed over.

        Raises:
            ArgumentError: a file is damaged, or cannot be read.
        """
        folders = [folders] if isinstance(folders, str) else list(folders)
        bad = [problem for folder in folders if (problem := self._no_folder(folder)) is not None]

        def read(name: str) -> Any:
            try:
                content = self._content(name)
                return None if content is None else one(name, content)
            except Damaged as error:
                return DamagedFile(name=name, why=str(error))

        names = [f"{folder}/{name}" for folder in folders for name in self._names(folder) if name.endswith(ENDING)]
        with ThreadPoolExecutor(READERS) as pool:
            found = list(pool.map(read, names))
        bad += [part for part in found if isinstance(part, DamagedFile)]
        if bad:
            raise self._damage(bad)
        return [part for part in found if part is not None]

    def _damage(self, bad: list[DamagedFile]) -> ArgumentError:
        """The error that names damaged files."""
        if len(bad) == 1:
            (file,) = bad
            return ArgumentError(
                f"{self._at(file.name)!r} is damaged ({file.why}); run the same sweep again, which measures its job "
                "again, or remove it."
            )
        some = ", ".join(f"{file.name!r} ({file.why})" for file in bad[:NAMED])
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        return ArgumentError(
            f"{len(bad)} files of the store {self.path!r} are damaged: {some}{more}; run the same sweep again, which "
            "measures their jobs again, or remove them."
        )

    def _write(self, name: str, content: bytes) -> None:
        """Under a temporary name, then renamed; an object store copies within itself, which is whole or not at all."""
        path = self._at(name)
        folder, _, last = path.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        if self._local:
            write_whole(Path(path), content)
            return
        temporary = f"{folder}/.{last}.{uuid.uuid4().hex}"
        with uninterrupted():
            self._fs.pipe_file(temporary, content)
            self._fs.mv(temporary, path)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # another sweep was faster
            self._fs.rm_file(self._at(name))

    def _move(self, name: str, to: str) -> None:
        """Also a folder, or a link to nothing."""
        source, target = self._at(name), self._at(to)
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        with suppress(FileNotFoundError):  # another sweep was faster
            if self._local:
                os.rename(source, target)
            else:
                self._fs.mv(source, target, recursive=True)

    @property
    def _local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self._fs, LocalFileSystem)


def _place(part: pa.Table) -> tuple[str, str, str]:
    """Where a job's rows are among others'."""
    first = part.slice(0, 1).to_pylist()[0]
    return first["model"], first["revision"] or "", first["job"]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
