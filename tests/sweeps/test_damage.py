"""What a disk or a user can do to a store: each is named and counted, and the next sweep makes it whole."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

import headscope as hs
from headscope.errors import ArgumentError, NonFiniteError
from headscope.evidence.kinds import sweepable
from headscope.sweeps.plan import Job
from headscope.sweeps.run import Failure, Outcome, failed
from headscope.sweeps.store import Store

A = Job(model="a", revision=None, content="c", what="circuit", settings=sweepable()["circuit"].settings, dtype="auto")
B = replace(A, model="b")
JOBS = (A, B)


def outcome(job, n_rows=2):
    row = {"sender": "L0H1", "receiver": "L1H2", "input": "k", "effect": 0.5}
    return Outcome(job=job, about={"family": "f", "rows": n_rows, "finished": "t"}, rows=[row] * n_rows)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store", create=True)
    for job in JOBS:
        made.put(outcome(job))
    return made


@pytest.fixture
def root(tmp_path, store):
    return tmp_path / "store"


def file(root, job, folder="circuit"):
    return root / folder / f"{job.identity}.parquet"


def copied_over(root):
    shutil.copy(file(root, A), file(root, B))
    return [f"circuit/{B.identity}.parquet"]


def moved_to_another_kind(root):
    (root / "verify").mkdir()
    os.rename(file(root, B), file(root, B, "verify"))
    return [f"verify/{B.identity}.parquet"]


def an_extra_file(root):
    shutil.copy(file(root, A), root / "circuit" / "backup.parquet")
    return ["circuit/backup.parquet"]


def a_dangling_link(root):
    file(root, B).unlink()
    file(root, B).symlink_to("nothing")
    return [f"circuit/{B.identity}.parquet"]


def a_folder_in_place_of_a_file(root):
    file(root, B).unlink()
    file(root, B).mkdir()
    return [f"circuit/{B.identity}.parquet"]


def a_pipe_in_place_of_a_file(root):
    file(root, B).unlink()
    os.mkfifo(file(root, B))
    return [f"circuit/{B.identity}.parquet"]


def a_file_in_place_of_the_folder(root):
    shutil.rmtree(root / "circuit")
    (root / "circuit").write_bytes(b"")
    return ["circuit"]


def a_link_to_nothing_in_place_of_the_folder(root):
    shutil.rmtree(root / "circuit")
    (root / "circuit").symlink_to("nothing")
    return ["circuit"]


def deep_json(root):
    table = pq.read_table(file(root, B))
    deep = b"[" * 100_000 + b"]" * 100_000
    from headscope.sweeps.job_file import _checksum

    pq.write_table(table.replace_schema_metadata({"headscope": deep, "checksum": _checksum(deep)}), file(root, B))
    return [f"circuit/{B.identity}.parquet"]


def rows_of_another_job(root):
    one, other = (pq.read_table(file(root, job)) for job in JOBS)
    pq.write_table(one.replace_schema_metadata(other.schema.metadata), file(root, B), write_page_checksum=True)
    return [f"circuit/{B.identity}.parquet"]


def a_row_gone(root):
    table = pq.read_table(file(root, B))
    pq.write_table(table.slice(0, 1), file(root, B), write_page_checksum=True)
    return [f"circuit/{B.identity}.parquet"]


def two_at_once(root):
    return copied_over(root) + an_extra_file(root)


DAMAGE = [
    copied_over, moved_to_another_kind, an_extra_file, a_dangling_link, a_folder_in_place_of_a_file,
    a_pipe_in_place_of_a_file, a_file_in_place_of_the_folder, a_link_to_nothing_in_place_of_the_folder, deep_json,
    rows_of_another_job, a_row_gone, two_at_once,
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_counted_set_aside_and_its_jobs_are_to_do(store, root, damage):
    whole = {table: store.to_frame(table) for table in ("circuit", "jobs")}
    names = damage(root)
    with pytest.raises(ArgumentError, match=r"is damaged|2 files of the store") as told:
        store.to_frame("jobs" if damage not in (rows_of_another_job, a_row_gone) else "circuit")
    assert "\n" not in str(told.value)
    assert all(name.split("/")[-1] in str(told.value) for name in names)

    aside = store.set_aside(JOBS)
    assert sorted(one.name for one in aside) == sorted(names)
    assert len(list((root / "damaged").iterdir())) == len(names)
    todo = [job for job in JOBS if not store.has(job)]
    assert {job.identity for job in todo} == {job.identity for job in JOBS} - set(store.state(JOBS))
    assert A not in todo or damage in (a_file_in_place_of_the_folder, a_link_to_nothing_in_place_of_the_folder)
    for job in todo:
        store.put(outcome(job))
    for table, frame in whole.items():
        assert store.to_frame(table).equals(frame)
    assert store.set_aside(JOBS) == ()


def test_a_job_whose_file_is_damaged_is_not_done(store, root):
    copied_over(root)
    assert (store.has(A), store.has(B)) == (True, False)
    assert store.state(JOBS) == {A.identity: "done"}


def test_damage_to_a_failure_is_named_and_the_job_tried_again(store, root):
    lost = [replace(A, model=name, content=name) for name in ("x", "y")]
    for job in lost:
        store.put(failed(job, Failure.of(NonFiniteError("why"))))
    one, other = sorted((root / "failed").iterdir())
    shutil.copy(one, other)
    with pytest.raises(ArgumentError, match=f"{other.name}' is damaged .it holds another job"):
        store.failures()
    (aside,) = store.set_aside([])
    assert aside.name == f"failed/{other.name}"
    assert len(store.failures()) == 1
    assert list(store.state(lost).values()) == ["failed"]


def test_many_damaged_files_are_counted_in_one_line(store, root):
    jobs = [replace(A, model=str(number)) for number in range(8)]
    for job in jobs:
        store.put(outcome(job))
        file(root, job).write_bytes(b"")
    with pytest.raises(ArgumentError, match="8 files of the store .* are damaged: .* and 3 more; run the same sweep"):
        store.to_frame("circuit")


def test_a_mark_that_is_nested_without_end_is_told(tmp_path):
    Store(tmp_path / "s", create=True)
    (tmp_path / "s" / "headscope-store.json").write_text('{"schema": ' + "[" * 100_000)
    with pytest.raises(ArgumentError, match=r"its headscope-store.json is damaged"):
        hs.open_store(tmp_path / "s")


def test_a_store_of_before_is_read(store, root):
    # Records then had no request beside the columns.
    path = file(root, A)
    table = pq.read_table(path)
    from headscope.sweeps.job_file import _checksum

    record = json.loads(table.schema.metadata[b"headscope"])
    del record["request"]
    text = json.dumps(record).encode()
    pq.write_table(
        table.replace_schema_metadata({"headscope": text, "checksum": _checksum(text)}), path, write_page_checksum=True
    )
    assert store.has(A)
    assert len(store.to_frame("circuit")) == 4


def test_a_sweep_makes_a_damaged_store_whole(tmp_path, save_models, assert_same):
    models = save_models(3)
    settings = {"scan": {"n_prompts": 2, "period": 8}}
    hs.sweep(models, tmp_path / "whole", settings=settings)
    hs.sweep(models, tmp_path / "store", settings=settings)
    one, other, last = sorted((tmp_path / "store" / "scan").iterdir())
    shutil.copy(one, other)
    last.unlink()
    last.symlink_to("nothing")
    shutil.copy(one, one.with_name("backup.parquet"))
    found = hs.sweep(models, tmp_path / "store", settings=settings)
    assert (found.planned, found.done, found.skipped, found.failed) == (3, 2, 1, 0)
    assert {one.name.split("/")[1] for one in found.damaged} == {other.name, last.name, "backup.parquet"}
    assert_same(hs.open_store(tmp_path / "store"), hs.open_store(tmp_path / "whole"))
