"""SQL over a store: it answers about the store, and reaches nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headscope.errors import ArgumentError, NonFiniteError
from headscope.evidence.kinds import sweepable
from headscope.sweeps.plan import Job
from headscope.sweeps.run import Failure, Outcome, failed
from headscope.sweeps.store import Store

JOB = Job(
    model="m", revision=None, content="c", what="circuit", settings=dict(sweepable()["circuit"].settings), dtype="auto"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = Store(tmp_path_factory.mktemp("query") / "store", create=True)
    edges = [{"sender": "L0H1", "receiver": f"L1H{head}", "effect": head / 10} for head in range(3)]
    made.put(Outcome(job=JOB, about={"family": "f", "finished": "t"}, rows=edges))
    made.put(failed(replace(JOB, model="n"), Failure.of(NonFiniteError("why"))))
    return made


def test_a_question_over_two_tables(store):
    # Effects 0.0, 0.1, 0.2 of one job.
    answer = store.query("SELECT j.model, sum(c.effect) AS s FROM circuit c JOIN jobs j USING (job) GROUP BY 1")
    assert answer.to_dict("records") == [{"model": "m", "s": pytest.approx(0.3)}]
    assert store.query("SELECT reason FROM jobs WHERE status = 'failed'")["reason"].tolist() == ["why"]
    assert len(store.query("WITH best AS (SELECT * FROM Circuit) SELECT * FROM best ORDER BY effect LIMIT 2")) == 2
    assert store.query("SELECT count(*) AS n FROM scan")["n"].tolist() == [0]


ONE_SELECT = "a query is one SELECT over scan, verify, circuit, icl, jobs; nothing else is run"


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("SELECT * FROM read_text('{secret}')", "Permission Error: Cannot access file"),
        ("SELECT * FROM '{secret}'", "does not exist"),
        ("SELECT * FROM read_csv('/etc/passwd')", "Permission Error: Cannot access file"),
        ("SELECT * FROM read_parquet('{store}/circuit/*.parquet')", "Permission Error: Cannot access file"),
        ("SELECT * FROM glob('/*')", "Permission Error: Cannot access file"),
        ("SELECT * FROM query('COPY circuit TO ''{out}''')", "Expected a single SELECT"),
        ("SELECT * FROM read_text('https://example.org')", "Permission Error|Missing Extension"),
        ("COPY circuit TO '{out}'", ONE_SELECT),
        ("EXPORT DATABASE '{out}'", ONE_SELECT),
        ("ATTACH '{out}'", ONE_SELECT),
        ("INSTALL httpfs", ONE_SELECT),
        ("LOAD httpfs", ONE_SELECT),
        ("SET enable_external_access = true", ONE_SELECT),
        ("RESET lock_configuration", ONE_SELECT),
        ("PRAGMA database_list", ONE_SELECT),
        ("CREATE TABLE x AS SELECT 1", ONE_SELECT),
        ("DROP VIEW circuit", ONE_SELECT),
        ("SELECT 1; COPY (SELECT 1) TO '{out}'", ONE_SELECT),
        ("", ONE_SELECT),
        ("SELEC 1", "syntax error"),
        ("SELECT colour FROM circuit", '"colour" not found'),
        ("SELECT * FROM secret", "does not exist"),
    ],
)
def test_everything_else_is_refused_in_one_line(store, tmp_path, sql, why):
    secret = tmp_path / "secret.txt"
    secret.write_text("hidden")
    sql = sql.format(secret=secret, out=tmp_path / "out", store=store.path)
    with pytest.raises(ArgumentError, match=why) as caught:
        store.query(sql)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [secret]


def test_python_variables_are_not_tables(store):
    hidden = store.to_frame("circuit")  # DuckDB would find a frame by the name of its variable
    assert len(hidden) == 3
    with pytest.raises(ArgumentError, match="does not exist"):
        store.query("SELECT * FROM hidden")
    with pytest.raises(ArgumentError, match="does not exist"):
        store.query("SELECT * FROM store")


def test_the_settings_hold_even_for_statements_that_slip_through(store, monkeypatch):
    import duckdb

    from headscope.sweeps import query

    connection = duckdb.connect(":memory:")
    for line in query._SHUT:
        connection.execute(line)
    for sql in ("SET enable_external_access = true", "COPY (SELECT 1) TO '/tmp/x'", "ATTACH '/tmp/x'", "LOAD httpfs"):
        with pytest.raises(duckdb.Error):
            connection.execute(sql)
