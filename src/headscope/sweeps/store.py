"""A store: the results of many sweeps, one Parquet file for each finished job, in a folder or at any fsspec URL.

    STORE/headscope-store.json      {"schema": "headscope.store/1"}
    STORE/scan/<identity>.parquet   rows of one job; its record is in the file's metadata. So verify, circuit, icl
    STORE/failed/<request>.<identity>.parquet   the record of a job that failed, until it succeeds
    STORE/tracebacks/<id>.txt       where it failed

The identity of a job is the name of its file, so two sweeps that finish the same job leave one file. Each file is
written under a temporary name and renamed: a reader sees a whole file or none, and a sweep that is killed leaves at
most a temporary file, which nobody reads. What is done and what failed is read from the names alone.

Cost: a list of names for each folder, whatever the files hold; a table is read in one go, many files at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.errors import ArgumentError
from headscope.records.files import write_whole
from headscope.sweeps.plan import KINDS, Job
from headscope.sweeps.run import Outcome
from headscope.sweeps.tables import ABOUT, TABLES, arrow_schema

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from headscope.sweeps.course import Course

SCHEMA = "headscope.store/1"

READERS = 16
"""Files that are read at once: most of the time of reading from afar is waiting."""

_MARK = "headscope-store.json"


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
        except (AttributeError, ValueError) as error:
            raise ArgumentError(f"{self.path!r} is no store: its {_MARK} is damaged.") from error
        if schema != SCHEMA:
            raise ArgumentError(f"{self.path!r} is a store of schema {schema!r}; this headscope reads {SCHEMA!r}.")

    def has(self, job: Job) -> bool:
        """Whether the job's rows are here."""
        return bool(self._fs.exists(self._at(_home(job))))

    def state(self, jobs: Iterable[Job]) -> dict[str, str]:
        """`done` or `failed` by identity, for those of these jobs that were tried.

        A job whose model has changed since it failed was not tried.
        """
        done = {name.removesuffix(".parquet") for kind in KINDS for name in self._names(kind)}
        tried = {name.split(".")[1] for name in self._names("failed") if name.count(".") == 2}
        names = [job.identity for job in jobs]
        return {name: "done" if name in done else "failed" for name in names if name in done | tried}

    def failures(self) -> list[dict[str, Any]]:
        """The rows of `jobs` that failed."""
        return self._read("failed", _record_in)

    def put(self, outcome: Outcome) -> None:
        """Keep what became of a job. A success replaces the failures of the same request; a failure, those before it.

        A failure never replaces rows.
        """
        job, failure = outcome.job, outcome.failure
        name = f"failed/{job.request}.{job.identity}.parquet"
        if failure is None:
            self._write(_home(job), _parquet(job.what, _rows(outcome), _record(outcome)))
        elif not self.has(job):
            self._write(f"tracebacks/{failure.traceback_id}.txt", failure.traceback.encode())
            self._write(name, _parquet("jobs", [_record(outcome)], _record(outcome)))
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

        return query(self, sql)

    def emergence(self, model: str, *, detector: str = "induction") -> Course:
        """How a role emerged over the revisions of a model that were swept: the strongest head at each step.

        Args:
            model: Hub id, or the absolute path of the folder that holds the checkpoints.
            detector: Which role.

        Raises:
            ArgumentError: there is no such scan, or two of one step.
        """
        from headscope.sweeps.course import course

        return course(self, model, detector=detector)

    def to_arrow(self, table: str) -> pa.Table:
        """The same as an Arrow table, ordered by model and job."""
        import pyarrow as pa

        schema = arrow_schema(table)
        if table == "jobs":
            rows = [row for kind in (*KINDS, "failed") for row in self._read(kind, _record_in)]
            rows.sort(key=lambda row: (row["model"], row["revision"] or "", row["what"], row["job"]))
            return pa.Table.from_pylist(rows, schema=schema)
        parts = self._read(table, partial(_table_in, schema))
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
        self._fs.invalidate_cache()
        try:
            paths = self._fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for path in paths if not (name := path.rstrip("/").rsplit("/", 1)[-1]).startswith("."))

    def _read(self, folder: str, one: Callable[[bytes], Any]) -> list[Any]:
        """Each file of a folder; those that another sweep removes meanwhile are passed over.

        Raises:
            ArgumentError: a file is damaged, or cannot be read.
        """
        import pyarrow as pa

        def read(name: str) -> Any:
            path = self._at(f"{folder}/{name}")
            try:
                content = self._fs.cat_file(path)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise ArgumentError(f"{path!r} cannot be read: {_line(error)}.") from error
            try:
                return one(content)
            except (pa.ArrowException, KeyError, OSError, TypeError, ValueError) as error:
                raise ArgumentError(f"{path!r} is damaged ({_line(error)}); remove it and sweep again.") from error

        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(read, [name for name in self._names(folder) if name.endswith(".parquet")])
            return [part for part in found if part is not None]

    def _write(self, name: str, content: bytes) -> None:
        """Under a temporary name, then renamed; an object store copies within itself, which is whole or not at all."""
        path = self._at(name)
        folder, _, last = path.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        if self._local:
            write_whole(Path(path), content)
            return
        temporary = f"{folder}/.{last}.{uuid.uuid4().hex}"
        self._fs.pipe_file(temporary, content)
        self._fs.mv(temporary, path)

    def _remove(self, name: str) -> None:
        with suppress(FileNotFoundError):  # another sweep was faster
            self._fs.rm_file(self._at(name))

    @property
    def _local(self) -> bool:
        from fsspec.implementations.local import LocalFileSystem

        return isinstance(self._fs, LocalFileSystem)


def _home(job: Job) -> str:
    return f"{job.what}/{job.identity}.parquet"


def _record(outcome: Outcome) -> dict[str, Any]:
    """The row of `jobs`."""
    job, failure = outcome.job, outcome.failure
    why = {} if failure is None else {"reason": failure.reason, "error": failure.error}
    known: dict[str, Any] = {
        "job": job.identity,
        "status": "done" if failure is None else "failed",
        "model": job.model,
        "revision": job.revision,
        "content": job.content,
        "what": job.what,
        "settings": json.dumps(job.settings, sort_keys=True),
        "dtype": job.dtype,
        "schema": SCHEMA,
        "traceback": None if failure is None else failure.traceback_id,
    }
    return dict.fromkeys(TABLES["jobs"]) | known | why | outcome.about


def _rows(outcome: Outcome) -> list[dict[str, Any]]:
    record = _record(outcome)
    about = {name: record[name] for name in ABOUT}
    return [about | row for row in outcome.rows]


def _parquet(table: str, rows: Sequence[dict[str, Any]], record: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.Table.from_pylist(list(rows), schema=arrow_schema(table))
    text = json.dumps(record)
    sink = io.BytesIO()
    # Pages carry their own checksums; the record, in the footer, needs one beside it.
    pq.write_table(
        made.replace_schema_metadata({"headscope": text, "checksum": _checksum(text.encode())}),
        sink,
        write_page_checksum=True,
    )
    return sink.getvalue()


def _checksum(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:16]


def _record_in(content: bytes) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = pq.read_schema(pa.BufferReader(content)).metadata or {}
    if metadata.get(b"checksum", b"").decode() != _checksum(metadata[b"headscope"]):
        raise ValueError("its record does not fit its checksum")
    record = json.loads(metadata[b"headscope"])
    if not isinstance(record, dict) or not record.keys() >= {"job", "status", "model", "revision", "what"}:
        raise ValueError("it holds no record of a job")
    return record


def _table_in(schema: pa.Schema, content: bytes) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pq.read_table(pa.BufferReader(content), page_checksum_verification=True).replace_schema_metadata(None)
    if found.schema != schema:
        raise ValueError(f"its columns are {', '.join(found.schema.names)}")
    return found


def _place(part: pa.Table) -> tuple[str, str, str]:
    """Where a job's rows stand among others'."""
    first = part.slice(0, 1).to_pylist()[0]
    return first["model"], first["revision"] or "", first["job"]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
