"""Records as documents: they come back as they were, and a document that was tampered with is refused by name."""

from __future__ import annotations

import ast
import copy
import json
from dataclasses import dataclass
from typing import Any, Literal

import jaxtyping
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headscope.errors import ArgumentError
from headscope.evidence.kinds import kinds
from headscope.evidence.params.measure import ParameterCount
from headscope.heads import HeadId
from headscope.records.codec import decode, encode
from headscope.records.document import SavedDocument
from scripts.house import PACKAGE

SCHEMA = "headscope.test/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    mean: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    head: HeadId
    kind: Literal["one", "two"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    name: str
    count: int
    exact: bool
    inner: Inner
    maybe: Inner | None
    many: tuple[Placed, ...]
    heads: tuple[HeadId, ...]
    words: tuple[str, ...]
    table: dict[str, float]
    settings: dict[str, Any]


@pytest.fixture
def record() -> Outer:
    return Outer(
        name="a",
        count=3,
        exact=True,
        inner=Inner(mean=0.5, ci95=(0.25, 0.75)),
        maybe=None,
        many=(Placed(head=HeadId(1, 2), kind="one"), Placed(head=HeadId(3, 4, 1), kind="two")),
        heads=(HeadId(0, 1), HeadId(5, 6, 2)),
        words=("x", "y"),
        table={"p": 0.125, "q": 1.0},
        settings={"kind": "anything", "list": [1, None, {"deep": True}]},
    )


@pytest.fixture
def document(record) -> dict[str, Any]:
    return encode(record)


# ---- there and back

HEADS = st.builds(HeadId, st.integers(0, 99), st.integers(0, 99), st.integers(0, 2))
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
INNER = st.builds(Inner, mean=NUMBERS, ci95=st.none() | st.tuples(NUMBERS, NUMBERS))
RECORDS = st.builds(
    Outer,
    name=TEXT,
    count=st.integers(),
    exact=st.booleans(),
    inner=INNER,
    maybe=st.none() | INNER,
    many=st.lists(st.builds(Placed, head=HEADS, kind=st.sampled_from(["one", "two"]))).map(tuple),
    heads=st.lists(HEADS).map(tuple),
    words=st.lists(TEXT).map(tuple),
    table=st.dictionaries(TEXT, NUMBERS),
    settings=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | NUMBERS | TEXT | st.lists(TEXT)),
)


@given(RECORDS)
def test_any_record_survives_text_and_comes_back_the_same(record):
    assert decode(Outer, json.loads(json.dumps(encode(record), allow_nan=False))) == record


def test_the_document_is_plain_json(document):
    assert json.loads(json.dumps(document)) == document
    assert list(document) == [
        "name", "count", "exact", "inner", "maybe", "many", "heads", "words", "table", "settings",
    ]  # fmt: skip
    assert document["inner"] == {"mean": 0.5, "ci95": [0.25, 0.75]}
    assert document["maybe"] is None
    assert document["words"] == ["x", "y"]


def test_a_head_is_layer_and_head_and_names_its_call_only_past_the_first(document):
    assert document["heads"] == [{"layer": 0, "head": 1}, {"layer": 5, "head": 6, "call": 2}]


def test_a_field_named_head_lies_flat_in_its_record(document):
    assert document["many"] == [
        {"layer": 1, "head": 2, "kind": "one"},
        {"layer": 3, "head": 4, "call": 1, "kind": "two"},
    ]


def test_what_was_written_is_read_as_the_same_record(record, document):
    assert decode(Outer, document) == record
    assert decode(Outer, json.loads(json.dumps(document))) == record


def test_a_whole_number_is_a_float_where_a_float_is_wanted(document):
    # JSON writers of other programs print 1.0 as 1.
    document["inner"]["mean"] = 1
    read = decode(Outer, document).inner.mean
    assert (read, type(read)) == (1.0, float)


@pytest.mark.parametrize("many", [(), (Inner(mean=1.0, ci95=None),) * 3])
def test_tuples_of_any_length_and_of_a_set_one(many):
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Some:
        many: tuple[Inner, ...]
        pair: tuple[int, str]

    # `decode` reads type hints where the class was made; these names are local.
    Some.__annotations__ = {"many": tuple[Inner, ...], "pair": tuple[int, str]}
    made = Some(many=many, pair=(7, "seven"))
    assert decode(Some, encode(made)) == made
    with pytest.raises(ArgumentError, match="the document is damaged"):
        decode(Some, encode(made) | {"pair": [7, "seven", 7]})


def test_a_document_that_is_read_is_left_as_it_was(document):
    before = copy.deepcopy(document)
    decode(Outer, document)
    decode(Outer, {"schema": SCHEMA, **document}, schema=SCHEMA)
    assert document == before


# ---- the schema


def test_the_schema_is_asked_for_and_then_left_out(record, document):
    assert decode(Outer, {"schema": SCHEMA, **document}, schema=SCHEMA) == record
    for wrong in ({"schema": "headscope.test/2", **document}, document, {}):
        with pytest.raises(ArgumentError, match=r"schema .* is not 'headscope.test/1'; give a file that headscope"):
            decode(Outer, wrong, schema=SCHEMA)
    for other in (None, [], "text", 3):
        with pytest.raises(ArgumentError, match="schema None is not 'headscope.test/1'"):
            decode(Outer, other, schema=SCHEMA)
    # Where none is asked for it is a field that nobody knows.
    with pytest.raises(ArgumentError, match="Outer has unknown schema"):
        decode(Outer, {"schema": SCHEMA, **document})


# ---- damage

WRONG = {
    "a number for text": ("name", 3, r"Outer\.name holds '3'"),
    "text for a whole number": ("count", "3", r"Outer\.count holds '3'"),
    "a part of a whole number": ("count", 2.5, r"Outer\.count holds '2\.5'"),
    "true for a whole number": ("count", True, r"Outer\.count holds 'True'"),
    "one for true": ("exact", 1, r"Outer\.exact holds '1'"),
    "nothing where there must be something": ("inner", None, r"Outer\.inner holds 'None'"),
    "a list for a record": ("inner", [0.5, None], r"Outer\.inner holds '\[0\.5, None\]'"),
    "true for a number": ("inner", {"mean": True, "ci95": None}, r"Outer\.inner\.mean holds 'True'"),
    "NaN in words": ("inner", {"mean": "NaN", "ci95": None}, r"Outer\.inner\.mean holds 'NaN'"),
    "nan in words": ("table", {"p": "nan"}, r"Outer\.table\['p'\] holds 'nan'"),
    "a number past all floats": ("table", {"p": 10**400}, "the document is damaged"),
    "an interval with one end": ("inner", {"mean": 0.5, "ci95": [0.25]}, "the document is damaged"),
    "an interval with three": ("inner", {"mean": 0.5, "ci95": [0, 1, 2]}, "the document is damaged"),
    "an interval of words": ("inner", {"mean": 0.5, "ci95": ["a", "b"]}, r"Outer\.inner\.ci95\[0\] holds 'a'"),
    "a field that a part lacks": ("inner", {"mean": 0.5}, r"Outer\.inner lacks ci95"),
    "a field that no part has": ("maybe", {"mean": 1, "ci95": None, "x": 1, "b": 2}, r"Outer\.maybe has unknown b, x"),
    "a kind that is none": ("many", [{"layer": 1, "head": 2, "kind": "three"}], r"many\[0\]\.kind holds 'three'"),
    "a list for a kind": ("many", [{"layer": 1, "head": 2, "kind": ["one"]}], r"many\[0\]\.kind holds"),
    "a place without its head": ("many", [{"layer": 1, "kind": "one"}], r"many\[0\]\.head holds"),
    "a head in words": ("heads", ["L0H1"], r"Outer\.heads\[0\] holds 'L0H1'"),
    "a head with more to it": ("heads", [{"layer": 0, "head": 1, "pass": 1}], r"Outer\.heads\[0\] holds"),
    "a layer that is true": ("heads", [{"layer": True, "head": 1}], r"Outer\.heads\[0\]\.layer holds 'True'"),
    "a record for a list": ("words", {"0": "x"}, r"Outer\.words holds"),
    "text for a list of texts": ("words", "xy", r"Outer\.words holds 'xy'"),
    "a list for a table": ("table", [0.5], r"Outer\.table holds"),
    "long junk, cut off": ("count", "z" * 500, r"holds '\"?z{60}'\); write it again"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_of_another_type_is_refused_with_its_place(case, document):
    field, value, said = WRONG[case]
    with pytest.raises(ArgumentError, match=said) as raised:
        decode(Outer, document | {field: value})
    assert str(raised.value).startswith("the document is damaged (")
    assert str(raised.value).endswith("; write it again.")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("field", [
    "name", "count", "exact", "inner", "maybe", "many", "heads", "words", "table", "settings",
])  # fmt: skip
def test_a_missing_field_is_named(field, document):
    del document[field]
    with pytest.raises(ArgumentError, match=f"Outer lacks {field}"):
        decode(Outer, document)


def test_unknown_fields_are_named_in_order(document):
    with pytest.raises(ArgumentError, match="Outer has unknown also, zeta"):
        decode(Outer, document | {"zeta": 1, "also": 2})


def test_settings_may_hold_anything(document):
    for value in (None, [], "text", 3, {"a": [True]}):
        assert decode(Outer, document | {"settings": {"x": value}}).settings == {"x": value}


@pytest.mark.parametrize("junk", [None, "x", [], {}, [1], [None, None], 7, True, -1.5], ids=repr)
def test_junk_anywhere_is_an_error_of_ours_or_a_record_of_the_right_types(junk, document, monkeypatch):
    # Without the type checks of these tests, as users run it.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

    def places(part, here=()):
        for key, value in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            yield (*here, key)
            yield from places(value, (*here, key))

    accepted = 0
    for path in places(document):
        damaged = copy.deepcopy(document)
        parent = damaged
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = junk
        try:
            read = decode(Outer, damaged)
        except ArgumentError:
            continue
        accepted += 1
        assert type(read.count) is int
        assert type(read.inner.mean) is float
        assert read.maybe is None or path == ("maybe",)
        assert all(type(one.head.layer) is type(one.head.call) is int for one in read.many)
        # What was read is written as it was given; -0 and 1 for 1.0 are equal.
        assert encode(read) == damaged
    assert accepted < sum(1 for _ in places(document))


def test_every_kind_is_read_and_saved_in_one_way():
    results = {name: kind.result() for name, kind in kinds().items()}
    assert {"scan", "verify", "circuit", "behavior", "emergence", "atlas"} <= set(results)
    saved = {name: one for name, one in results.items() if issubclass(one, SavedDocument)}
    assert {"scan", "verify", "circuit", "behavior", "emergence", "atlas"} <= set(saved)
    for name, one in saved.items():
        assert one.schema == kinds()[name].schema
        assert not {"save", "load", "to_json"} & set(vars(one)), "one code for all"


def test_documents_are_written_and_read_by_one_code():
    written = {"to_dict", "from_dict", "to_json"}
    found = {
        (path.relative_to(PACKAGE).as_posix(), node.name)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name in written
    }
    assert found == {
        *(("records/document.py", name) for name in written),
        ("page/report.py", "to_json"),  # of the page's data, which are no record
        ("page/example.py", "to_dict"),  # a part of them; it needs the model for the text of tokens
    }


def test_what_is_computed_from_a_record_is_in_its_document():
    count = ParameterCount(
        per_head=12, per_head_with_bias=15, heads=(HeadId(0, 1), HeadId(2, 3, 1)), circuit=24, model_total=96
    )
    assert json.loads(count.to_json()) == {
        "schema": "headscope.params/1",
        "per_head": 12,
        "per_head_with_bias": 15,
        "circuit": {"heads": [{"layer": 0, "head": 1}, {"layer": 2, "head": 3}], "n_heads": 2, "parameters": 24},
        "model_total": 96,
        "share": 0.25,  # 24 of 96
    }
