"""Kinds of evidence: one list that sweeps, stores and documents go through."""

from __future__ import annotations

import json

import pytest

import headscope as hs
from headscope.errors import ArgumentError
from headscope.evidence.kinds import kind_of, kinds, result_of, saved_results, sweepable
from headscope.sweeps.tables import TABLES


def test_each_kind_has_a_schema_of_its_own_and_results_that_make_the_round_trip():
    found = kinds()
    assert {"scan", "verify", "circuit", "icl", "behavior", "emergence"} <= set(found)
    assert len({kind.schema for kind in found.values()}) == len(found)
    for kind in found.values():
        assert hasattr(kind.result(), "to_dict")
        assert hasattr(kind.result(), "from_dict")


def test_a_store_has_a_table_for_each_kind_that_a_sweep_measures():
    assert set(TABLES) == {*sweepable(), "jobs"}


def test_a_document_is_read_whatever_its_kind(tmp_path):
    model = hs.load("demo")
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=5))
    (tmp_path / "other.json").write_text(json.dumps({"schema": "else/1"}))
    scan.save(tmp_path)
    (again,) = saved_results(tmp_path)
    assert kind_of(again).name == "scan"
    assert again.to_dict() == scan.to_dict()
    with pytest.raises(ArgumentError, match="schema 'else/1' is not known"):
        result_of({"schema": "else/1"})
    with pytest.raises(ArgumentError, match="is not a folder"):
        saved_results(tmp_path / "none")
    with pytest.raises(ArgumentError, match="a int is not a result"):
        kind_of(3)
