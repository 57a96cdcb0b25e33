"""Frozen records as JSON documents, and back.

The record's own type hints say what a document may hold, so what is read is checked: a wrong type, an unknown field, or
a missing field without a default raises ArgumentError. A field that a record gains has a default, so older documents
stay readable. A head is `{"layer", "head"}`, with `call` only in looped models; a field named `head` is flat in its
record.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from headscope.errors import ArgumentError, brief
from headscope.heads import HeadId

Record = TypeVar("Record")


def encode(value: Any) -> Any:
    """A record, or what it holds, as JSON-ready values."""
    if isinstance(value, HeadId):
        return {"layer": value.layer, "head": value.head} | ({"call": value.call} if value.call else {})
    if is_dataclass(value):
        document: dict[str, Any] = {}
        for field in fields(value):
            part = encode(getattr(value, field.name))
            document |= part if field.name == "head" else {field.name: part}
        return document
    if isinstance(value, (tuple, list)):
        return [encode(one) for one in cast("Iterable[Any]", value)]
    if isinstance(value, dict):
        return {key: encode(one) for key, one in cast("dict[str, Any]", value).items()}
    return value


def decode(kind: type[Record], document: Any, *, schema: str | None = None) -> Record:
    """The record that `encode` wrote, its `schema` left out.

    Raises:
        ArgumentError: the document has another schema, or does not hold what the record needs.
    """
    if schema is not None:
        document = body_of(document, schema=schema)
    try:
        return _decoded(kind, document, kind.__name__)
    except (OverflowError, TypeError, ValueError) as error:
        raise ArgumentError(f"the document is damaged ({brief(error)}); write it again.") from error


def body_of(document: Any, *, schema: str) -> dict[str, Any]:
    """A document without its schema.

    Raises:
        ArgumentError: the document has another schema, or none.
    """
    found = cast("dict[str, Any]", document) if isinstance(document, dict) else {}
    if (given := found.get("schema")) != schema:
        raise ArgumentError(f"schema {brief(repr(given))} is not {schema!r}; give a file that headscope wrote as such.")
    return {key: value for key, value in found.items() if key != "schema"}


def refuse_repeated(heads: Iterable[HeadId]) -> None:
    """Raise if a head occurs twice where each has one place: it is not known which of its numbers hold.

    Raises:
        ArgumentError: with the head.
    """
    seen: set[HeadId] = set()
    for head in heads:
        if head in seen:
            raise ArgumentError(f"the document is damaged ({head} is in it twice); write it again.")
        seen.add(head)


def _decoded(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        some = [one for one in inner if one is not type(None)]
        return None if value is None and len(some) < len(inner) else _decoded(some[0], value, where)
    if origin is Literal:
        return _if(value in inner, value, where)
    if origin is dict:
        _if(isinstance(value, dict), value, where)
        return {key: _decoded(inner[1], one, f"{where}[{key!r}]") for key, one in value.items()}
    if origin is tuple:
        _if(isinstance(value, list), value, where)
        parts = [inner[0]] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(
            _decoded(part, one, f"{where}[{i}]") for i, (part, one) in enumerate(zip(parts, value, strict=True))
        )
    if kind is HeadId:
        parts = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
        _if({"layer", "head"} <= set(parts) <= {"layer", "head", "call"}, value, where)
        return HeadId(*(_decoded(int, parts.get(name, 0), f"{where}.{name}") for name in ("layer", "head", "call")))
    if is_dataclass(kind):
        return _record(kind, _if(isinstance(value, dict), value, where), where)
    if kind is float:
        return float(_if(isinstance(value, (int, float)) and not isinstance(value, bool), value, where))
    return _if(isinstance(value, kind) and not (kind is int and isinstance(value, bool)), value, where)


def _record(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints, rest, made = get_type_hints(kind), dict(value), {}
    for field in fields(kind):
        name = field.name
        if name == "head" and hints[name] is HeadId:
            given = {part: rest.pop(part) for part in ("layer", "head", "call") if part in rest}
        elif name in rest:
            given = rest.pop(name)
        elif field.default is not MISSING or field.default_factory is not MISSING:
            continue  # a field that documents of earlier versions lack
        else:
            raise ValueError(f"{where} lacks {name}")
        made[name] = _decoded(hints[name], given, f"{where}.{name}")
    if rest:
        raise ValueError(f"{where} has unknown {', '.join(sorted(rest))}")
    return kind(**made)


def _if(holds: bool, value: Any, where: str) -> Any:
    if not holds:
        raise TypeError(f"{where} holds {str(value)[:60]!r}")
    return value
