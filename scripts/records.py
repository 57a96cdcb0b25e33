"""The records of the documents that the page reads, as TypeScript: `python -m scripts.records > web/src/records.ts`.

Every dataclass that a listed one holds becomes an interface of its name, field by field, as
`headscope.records.codec.encode` writes it: a field `head` is flat, a tuple is a list, a HeadId is a HeadRef.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from headscope.evidence.atlas.result import Atlas
from headscope.evidence.behavior.result import BehaviorResult
from headscope.evidence.circuit.result import Circuit
from headscope.evidence.compare.result import Comparison
from headscope.evidence.verify.result import Verification
from headscope.heads import HeadId
from headscope.page.finding import Finding
from headscope.page.tables import TokenTables
from headscope.records.common import ModelInfo, Provenance

ROOTS = (ModelInfo, Provenance, Finding, Verification, Circuit, TokenTables, BehaviorResult, Comparison, Atlas)
"""What the page's document holds as `encode` writes it."""
PLAIN = {str: "string", int: "number", float: "number", bool: "boolean", Any: "unknown", object: "unknown"}


def typescript() -> str:
    """The file `web/src/records.ts`.

    Raises:
        ValueError: two records of one name.
    """
    found: dict[str, type] = {}
    for root in ROOTS:
        _collect(root, found)
    head = "/* Made by `python -m scripts.records`. The page's documents, as the records that write them say. */"
    ref = "export interface HeadRef {\n  layer: number;\n  head: number;\n  call?: number;\n}"
    return "\n".join([head, "", ref, *(_interface(kind) for _, kind in sorted(found.items()))]) + "\n"


def _collect(kind: Any, found: dict[str, type]) -> None:
    if kind is HeadId or kind in found.values():
        return
    if isinstance(kind, type) and is_dataclass(kind) and found.setdefault(kind.__name__, kind) is not kind:
        raise ValueError(f"{kind.__module__} and {found[kind.__name__].__module__} both have a {kind.__name__}")
    for part in get_type_hints(kind).values() if is_dataclass(kind) else get_args(kind):
        _collect(part, found)


def _interface(kind: type) -> str:
    hints = get_type_hints(kind)
    flat = hints.get("head") is HeadId
    lines = [f"export interface {kind.__name__}{' extends HeadRef' if flat else ''} {{"]
    for field in fields(kind):
        if not (flat and field.name == "head"):
            lines.append(f"  {field.name}: {_type(hints[field.name])};")
    return "\n".join([*lines, "}"])


def _type(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if kind is type(None):
        return "null"
    if kind is HeadId:
        return "HeadRef"
    if origin in (Union, types.UnionType):
        return " | ".join(_type(part) for part in inner)
    if origin is Literal:
        return " | ".join(f'"{part}"' for part in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"[{', '.join(_type(part) for part in inner)}]"
    if origin in (tuple, list):
        each = _type(inner[0])
        return f"({each})[]" if get_origin(inner[0]) in (Union, types.UnionType, Literal) else f"{each}[]"
    if origin in (dict, Mapping):
        return f"Record<string, {_type(inner[1])}>"
    if isinstance(kind, type) and is_dataclass(kind):
        return kind.__name__
    raise ValueError(f"no TypeScript type for {kind!r}")


if __name__ == "__main__":
    sys.stdout.write(typescript())
