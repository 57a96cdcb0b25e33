"""The store: whole files or none, one for each job, failures kept until they are mended."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

import headscope as hs
from headscope.errors import ArgumentError, NonFiniteError
from headscope.evidence.kinds import sweepable
from headscope.sweeps.plan import Job
from headscope.sweeps.run import Failure, Outcome, failed
from headscope.sweeps.store import Store
from headscope.sweeps.tables import ABOUT, TABLES, arrow_schema

JOB = Job(
    model="m",
    revision="main",
    content="c",
    what="circuit",
    settings=dict(sweepable()["circuit"].settings),
    dtype="auto",
)
ROW = {"sender": "L0H1", "receiver": "L1H2", "input": "k", "effect": 0.5}


def outcome(job=JOB, n_rows=1):
    return Outcome(job=job, about={"family": "f", "n_parameters": 7, "finished": "t"}, rows=[ROW] * n_rows)


def failure(job=JOB, text="why"):
    return failed(job, Failure.of(NonFiniteError(text)))


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    if request.param == "folder":
        return Store(tmp_path / "store", create=True)
    return Store(f"memory://{tmp_path.name}/store", create=True)


def test_rows_come_back_with_what_they_are_about(store):
    store.put(outcome())
    (row,) = store.to_frame("circuit").to_dict("records")
    about = {"job": JOB.identity, "model": "m", "revision": "main", "content": "c", "family": "f", "n_parameters": 7}
    assert row.items() >= (about | ROW).items()
    (job,) = store.to_frame("jobs").to_dict("records")
    assert job.items() >= {"job": JOB.identity, "status": "done", "what": "circuit"}.items()
    assert pd.isna(job["reason"])
    assert json.loads(job["settings"]) == dict(sweepable()["circuit"].settings)


def test_every_table_has_its_columns_also_when_empty(store):
    for table, columns in TABLES.items():
        assert list(store.to_frame(table).columns) == [*(() if table == "jobs" else ABOUT), *columns]
    with pytest.raises(ArgumentError, match="a store has no table 'heads'; it has scan"):
        store.to_frame("heads")


def test_a_job_without_rows_is_done_all_the_same(store):
    store.put(outcome(n_rows=0))
    assert store.state([JOB]) == {JOB.identity: "done"}
    assert len(store.to_frame("circuit")) == 0
    assert list(store.to_frame("jobs")["status"]) == ["done"]


def test_the_same_job_twice_is_there_once(store):
    store.put(outcome())
    store.put(outcome())
    assert len(store.to_frame("circuit")) == len(store.to_frame("jobs")) == 1


def test_a_failure_is_a_row_with_its_traceback_until_the_job_succeeds(store):
    store.put(failure())
    assert store.state([JOB]) == {JOB.identity: "failed"}
    (row,) = store.to_frame("jobs").to_dict("records")
    assert (row["status"], row["error"], row["reason"]) == ("failed", "NonFiniteError", "why")
    assert "NonFiniteError: why" in store.traceback(row["traceback"])
    store.put(outcome())
    assert list(store.to_frame("jobs")["status"]) == ["done"]
    assert store.state([JOB]) == {JOB.identity: "done"}


def test_a_failure_never_replaces_rows(store):
    store.put(outcome())
    store.put(failure())
    assert list(store.to_frame("jobs")["status"]) == ["done"]


def test_the_latest_failure_of_a_request_is_kept_and_a_changed_model_counts_as_not_tried(store):
    store.put(failure())
    changed = replace(JOB, content="mended")
    assert store.state([changed]) == {}
    store.put(failure(changed, "still"))
    assert list(store.to_frame("jobs")["reason"]) == ["still"]
    store.put(outcome(changed))
    assert list(store.to_frame("jobs")["status"]) == ["done"]


def test_success_under_another_name_of_the_same_commit_mends_the_failure(store):
    store.put(failure())
    store.put(outcome(replace(JOB, revision="v1")))
    assert list(store.to_frame("jobs")["status"]) == ["done"]


def test_a_write_that_breaks_off_leaves_nothing_to_read(store, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # The moment before the rename, in a folder and elsewhere.
        patch.setattr("os.replace", broken)
        patch.setattr(type(store._fs), "mv", broken)
        with pytest.raises(KeyboardInterrupt):
            store.put(outcome())
    assert not store.has(JOB)
    assert store.state([JOB]) == {}
    assert len(store.to_frame("circuit")) == len(store.to_frame("jobs")) == 0
    store.put(outcome())
    assert len(store.to_frame("circuit")) == 1


def test_writers_and_readers_at_once_see_whole_files_only(store):
    jobs = [replace(JOB, model=f"m{number}") for number in range(8)]

    def write(number: int) -> None:
        store.put(outcome(jobs[number % 8], n_rows=50))

    def read(_: int) -> int:
        # A torn file would raise, or give part of a job's 50 rows.
        return len(store.to_frame("circuit")) % 50

    with ThreadPoolExecutor(8) as pool:
        writes, reads = pool.map(write, range(64)), pool.map(read, range(24))
        assert set(reads) == {0}
        list(writes)
    frame = store.to_frame("circuit")
    assert frame.groupby("model").size().to_dict() == {f"m{number}": 50 for number in range(8)}


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize("table", ["circuit", "jobs"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"PAR1", b"PAR2"),
        lambda content: parquet(pa.table({"a": [1]})),
    ],
    ids=["empty", "truncated", "no Parquet", "another table"],
)
def test_a_damaged_file_is_named_in_one_line(store, table, damage):
    store.put(outcome())
    path = store._at(f"circuit/{JOB.identity}.parquet")
    store._fs.pipe_file(path, damage(store._fs.cat_file(path)))
    said = f"{JOB.identity}.parquet' is damaged .*; run the same sweep again"
    with pytest.raises(ArgumentError, match=said) as told:
        store.to_frame(table)
    assert "\n" not in str(told.value)
    store._fs.rm_file(path)
    assert store.state([JOB]) == {}


def test_names_of_other_kinds_are_passed_over(store):
    store.put(failure())
    store._fs.pipe_file(store._at("failed/README"), b"mine")
    assert store.state([JOB]) == {JOB.identity: "failed"}
    assert len(store.failures()) == 1


def test_two_sweeps_that_make_a_store_at_once_share_it(tmp_path, monkeypatch):
    real, asked = LocalFileSystem.exists, []

    def exists(self, path, **options):
        found = real(self, path, **options)
        if not asked:  # just after the first look, the other sweep makes the store and keeps a result
            asked.append(path)
            Store(tmp_path, create=True).put(outcome())
        return found

    monkeypatch.setattr(LocalFileSystem, "exists", exists)
    assert Store(tmp_path, create=True).has(JOB)


def test_opening_needs_a_store(tmp_path):
    with pytest.raises(ArgumentError, match="is no store; give the folder or URL that a sweep filled"):
        hs.open_store(tmp_path)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ArgumentError, match=r"holds other things \(thesis.tex\); give a new or empty folder"):
        Store(tmp_path, create=True)
    with pytest.raises(ArgumentError, match="is no store that can be opened"):
        hs.open_store("carrier-pigeon://loft")


def test_a_store_of_another_schema_is_refused(tmp_path):
    Store(tmp_path / "s", create=True)
    (tmp_path / "s" / "headscope-store.json").write_text('{"schema": "headscope.store/9"}')
    with pytest.raises(ArgumentError, match="schema 'headscope.store/9'; this headscope reads 'headscope.store/1'"):
        hs.open_store(tmp_path / "s")
    (tmp_path / "s" / "headscope-store.json").write_text("[")
    with pytest.raises(ArgumentError, match="damaged"):
        hs.open_store(tmp_path / "s")


def test_a_name_of_a_traceback_is_no_path(tmp_path):
    store = Store(tmp_path / "s", create=True)
    with pytest.raises(ArgumentError, match="no traceback"):
        store.traceback("../headscope-store.json")


def test_schemas_are_known_for_every_table():
    for table in TABLES:
        assert len(arrow_schema(table)) > 0
