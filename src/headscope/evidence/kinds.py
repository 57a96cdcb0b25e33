"""Every kind of evidence: what it is called, its document, and how a sweep measures it.

A kind is a folder of `headscope.evidence` with a file `kind.py` that holds `KIND`. Sweeps, stores, reports and the
reading of documents go through this list, so that a new folder is a new kind everywhere.

A kind's record is light: its functions import what they need when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import headscope.evidence
from headscope.errors import ArgumentError, brief
from headscope.records.files import read_document


def _frame_rows(result: Any) -> list[dict[str, Any]]:
    """A result's frame as rows, but for the model, which a store names in every row; what is missing is None."""
    frame = result.to_frame().drop(columns="model", errors="ignore")
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweepable:
    """How a sweep measures a kind, and the table that its rows form."""

    settings: Mapping[str, Any]
    """What can be set, and its default."""
    measure: Callable[..., Any]
    """From a model and the settings by name to the result."""
    columns: Mapping[str, str]
    """Type of each column: `string`, `int64`, `double`, `bool` or `list` (of numbers)."""
    rows: Callable[[Any], list[dict[str, Any]]] = _frame_rows
    """From a result to its rows; by default those of its frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of evidence."""

    name: str
    """As the command line, a store and the page call it."""
    order: int
    """Place among the kinds."""
    schema: str
    """Of its document, like `headscope.scan/1`."""
    result: Callable[[], Any]
    """Its class of results, with `from_dict` and `to_dict`; a function, so that nothing is imported early."""
    sweep: Sweepable | None = None
    """How a sweep measures it; None where a sweep does not."""
    section: str | None = None
    """Title of its section on the page, drawn by `web/src/sections/NAME.tsx`; None where it has none."""


@cache
def kinds() -> dict[str, Kind]:
    """Every kind by its name, in order."""
    folders = [found.name for found in iter_modules(headscope.evidence.__path__, "headscope.evidence.") if found.ispkg]
    found = [import_module(f"{name}.kind").KIND for name in folders if find_spec(f"{name}.kind") is not None]
    return {kind.name: kind for kind in sorted(found, key=lambda kind: (kind.order, kind.name))}


def sweepable() -> dict[str, Sweepable]:
    """What a sweep can measure, by the kind's name, in order."""
    return {name: kind.sweep for name, kind in kinds().items() if kind.sweep is not None}


def kind_of(result: Any) -> Kind:
    """The kind of a result.

    Raises:
        ArgumentError: it is no result of a kind of evidence.
    """
    for kind in kinds().values():
        if isinstance(result, kind.result()):
            return kind
    raise ArgumentError(f"a {type(result).__name__} is not a result of {', '.join(kinds())}.")


def result_of(document: Mapping[str, Any]) -> Any:
    """The result that a document holds, whatever its kind.

    Raises:
        ArgumentError: no kind writes such a document, or it is damaged.
    """
    schemas = {kind.schema: kind for kind in kinds().values()}
    schema = document.get("schema")
    if schema not in schemas:
        raise ArgumentError(f"schema {brief(repr(schema))} is not known; a document is one of {', '.join(schemas)}.")
    return schemas[schema].result().from_dict(dict(document))


def saved_results(folder: str | Path) -> list[Any]:
    """The results whose documents are in a folder, in the order of their kinds.

    Files that hold no document of a kind are passed over.

    Raises:
        ArgumentError: there is no such folder, or a document is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ArgumentError(f"{str(folder)!r} is not a folder; name one in which a command's --out wrote results.")
    schemas = {kind.schema: kind.order for kind in kinds().values()}
    documents = [read_document(path, path.name) for path in sorted(folder.glob("*.json"))]
    known = [document for document in documents if document.get("schema") in schemas]
    return [result_of(document) for document in sorted(known, key=lambda one: schemas[one["schema"]])]


def table_of(columns: Iterable[str], kind: str) -> dict[str, str]:
    """Columns of one type."""
    return dict.fromkeys(columns, kind)
