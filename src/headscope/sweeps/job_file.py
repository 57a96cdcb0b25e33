"""One job's file in a store: its rows as Parquet, its record in the metadata, and what proves that it is whole.

    name       <identity>.parquet of a job that is done, <request>.<identity>.parquet of one that failed
    record     the row of `jobs`, JSON, with a checksum beside it; names the job, and so must fit the file's name
    rows       pages with checksums; every row names the same job

So a bit that flipped, a file that was copied over another or into another job's folder, and a file that no sweep
wrote are each found when the file is read.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from headscope.sweeps.plan import KINDS, Job
from headscope.sweeps.run import Outcome
from headscope.sweeps.tables import ABOUT, TABLES, arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA = "headscope.store/1"
FAILED = "failed"
"""The folder of jobs that failed; those of a kind that are done are in the folder of its name."""
FOLDERS = (*KINDS, FAILED)
ENDING = ".parquet"

_DONE = re.compile(r"(?P<identity>[0-9a-f]{64})\.parquet")
_FAILED = re.compile(r"(?P<request>[0-9a-f]{16})\.(?P<identity>[0-9a-f]{64})\.parquet")


class Damaged(ValueError):
    """A file does not hold what its name says; the message says in what way."""


def place(job: Job, *, done: bool = True) -> str:
    """The name of a job's file in its store."""
    return f"{job.what}/{job.identity}{ENDING}" if done else f"{FAILED}/{job.request}.{job.identity}{ENDING}"


def written(outcome: Outcome) -> bytes:
    """The file of what became of a job."""
    record = _record(outcome)
    if outcome.failure is not None:
        return _parquet("jobs", [record], record)
    about = {name: record[name] for name in ABOUT}
    return _parquet(outcome.job.what, [_text(about | row) for row in outcome.rows], record)


def record_of(name: str, content: bytes) -> dict[str, Any]:
    """The row of `jobs` in a file.

    Args:
        name: Of the file in its store, with its folder.
        content: Its bytes.

    Raises:
        Damaged: it holds no record, a damaged one, or another job's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if (match := _match(name)) is None:
        raise Damaged("no job has a file of this name")
    try:
        metadata = pq.read_schema(pa.BufferReader(content)).metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(_line(error)) from error
    text = metadata.get(b"headscope", b"")
    if metadata.get(b"checksum", b"") != _checksum(text).encode():
        raise Damaged("its record does not fit its checksum")
    try:
        record = json.loads(text)
        json.loads(record["settings"])
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise Damaged("it holds no record of a job") from error
    if not isinstance(record, dict) or not record.keys() >= {"job", "status", "model", "revision", "what"}:
        raise Damaged("it holds no record of a job")
    _refuse_other(name, match["identity"], record)
    return record


def table_of(name: str, content: bytes) -> pa.Table:
    """The rows in the file of a job that is done.

    Raises:
        Damaged: as `record_of`; or rows that are damaged, of another table, too few or another job's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = record_of(name, content)
    try:
        found = pq.read_table(pa.BufferReader(content), page_checksum_verification=True).replace_schema_metadata(None)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damaged(_line(error)) from error
    if found.schema != arrow_schema(record["what"]):
        raise Damaged(f"its columns are {', '.join(found.schema.names)}"[:200])
    if record.get("rows") not in (None, len(found)):
        raise Damaged(f"it holds {len(found)} rows of {record['rows']}")
    if set(found["job"].to_pylist()) - {record["job"]}:
        raise Damaged("it holds rows of another job")
    return found


def check(name: str, content: bytes) -> None:
    """Raise Damaged unless the file is whole and what its name says."""
    if name.startswith(f"{FAILED}/"):
        record_of(name, content)
    else:
        table_of(name, content)


def is_name(name: str) -> bool:
    """Whether a job can have a file of this name."""
    return _match(name) is not None


def _match(name: str) -> re.Match[str] | None:
    folder, _, last = name.rpartition("/")
    return (_FAILED if folder == FAILED else _DONE).fullmatch(last)


def _refuse_other(name: str, identity: str, record: dict[str, Any]) -> None:
    folder, _, last = name.rpartition("/")
    if record["job"] != identity:
        raise Damaged("it holds another job than its name says")
    if (record["status"], record["what"]) != ("done", folder) and (record["status"], folder) != ("failed", FAILED):
        raise Damaged(f"it belongs in the folder {FAILED if record['status'] == 'failed' else record['what']}")
    if folder == FAILED and record.get("request") not in (None, last.partition(".")[0]):
        raise Damaged("it holds another request than its name says")


def _record(outcome: Outcome) -> dict[str, Any]:
    """The row of `jobs`, and the request, which is no column."""
    job, failure = outcome.job, outcome.failure
    why = {} if failure is None else {"reason": failure.reason, "error": failure.error}
    known: dict[str, Any] = {
        "job": job.identity,
        "request": job.request,
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
    return _text(dict.fromkeys(TABLES["jobs"]) | known | why | outcome.about)


def _text(row: dict[str, Any]) -> dict[str, Any]:
    """With text that UTF-8 can hold: halves of surrogate pairs become their codes."""
    return {key: one.encode(errors="backslashreplace").decode() if isinstance(one, str) else one
            for key, one in row.items()}  # fmt: skip


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
