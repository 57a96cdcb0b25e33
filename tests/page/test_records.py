"""The page's types are made from the records that write its documents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from headscope.heads import HeadId
from scripts import records

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    head: HeadId
    bounds: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    inner: tuple[Inner, ...]
    senders: list[HeadId]
    status: Literal["kept", "lost"]
    by_name: dict[str, int | None]


def test_the_page_has_the_types_of_the_records():
    assert (ROOT / "web/src/records.ts").read_text() == records.typescript(), (
        "run: python -m scripts.records > web/src/records.ts"
    )


def test_each_field_has_the_type_that_its_json_has(monkeypatch):
    monkeypatch.setattr(records, "ROOTS", (Outer,))
    wanted = """
export interface Inner extends HeadRef {
  bounds: [number, number] | null;
}
export interface Outer {
  inner: Inner[];
  senders: HeadRef[];
  status: "kept" | "lost";
  by_name: Record<string, number | null>;
}
"""
    assert records.typescript().endswith(wanted)


def test_two_records_of_one_name_are_told(monkeypatch):
    other = dataclass(type("Inner", (), {"__annotations__": {"number": int}}))
    monkeypatch.setattr(records, "ROOTS", (Inner, other))
    with pytest.raises(ValueError, match="both have a Inner"):
        records.typescript()
