"""A result as a JSON document and as files in a folder, in one way for every kind of evidence."""

# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportUnknownVariableType=false
from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from headscope.heads import HeadId
from headscope.records.codec import body_of, decode, encode, refuse_repeated
from headscope.records.files import read_document, write_whole

if TYPE_CHECKING:
    import pyarrow as pa

Record = TypeVar("Record", bound="Document")
Kept = TypeVar("Kept", bound="SavedDocument")


class WrittenDocument:
    """A frozen record that is written as a JSON document."""

    __slots__ = ()
    schema: ClassVar[str]
    """What the document says it is, like `headscope.verify/1`."""

    def body(self) -> dict[str, Any]:
        """What the document holds besides its schema: the record's fields, unless a class says otherwise."""
        return encode(self)

    def to_dict(self) -> dict[str, Any]:
        """The document, JSON-ready; `schema` says which."""
        return {"schema": self.schema, **self.body()}

    def to_json(self) -> str:
        """The document as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


class Document(WrittenDocument):
    """A document that is read back as the record that wrote it."""

    __slots__ = ()

    @classmethod
    def of_body(cls: type[Record], body: dict[str, Any]) -> Record:
        """The record that `body` wrote.

        Raises:
            ArgumentError: the body is damaged.
        """
        return decode(cls, body)

    @classmethod
    def from_dict(cls: type[Record], document: dict[str, Any]) -> Record:
        """The result that `to_dict` wrote.

        Raises:
            ArgumentError: the document is of another schema, or damaged.
        """
        found = cls.of_body(body_of(document, schema=cls.schema))
        refuse_repeated(found.listed())
        found.refuse_damage()
        return found

    def listed(self) -> Iterable[HeadId]:
        """Heads of which each may be in the document once."""
        return ()

    def refuse_damage(self) -> None:
        """Raise an ArgumentError where the document contradicts itself."""


class SavedDocument(Document):
    """A document with a file of its own in a folder, and other files beside it."""

    __slots__ = ()

    @classmethod
    def file(cls) -> str:
        """The document's file, by its schema: `verify.json` holds a `headscope.verify/1`."""
        return cls.schema.removeprefix("headscope.").split("/")[0] + ".json"

    def beside(self) -> dict[str, bytes]:
        """Further files by their endings, like `parquet`."""
        return {}

    def save(self, folder: str | Path) -> tuple[Path, ...]:
        """Write the document, and beside it tables and pictures, into a folder that is made if need be.

        Returns the paths, the document's first.
        """
        folder = Path(folder)
        contents = {"json": (self.to_json() + "\n").encode(), **self.beside()}
        folder.mkdir(parents=True, exist_ok=True)
        paths = {folder / self.file().replace(".json", f".{ending}"): content for ending, content in contents.items()}
        for path, content in paths.items():
            write_whole(path, content)
        return tuple(paths)

    @classmethod
    def load(cls: type[Kept], path: str | Path) -> Kept:
        """Read the document's file, or the folder that holds it.

        Raises:
            ArgumentError: there is no such file, or it holds something else.
        """
        return cls.from_dict(read_document(path, cls.file()))


def parquet(table: pa.Table, about: dict[str, Any] | None = None) -> bytes:
    """A table as a Parquet file; `about` goes into its metadata under `headscope`, as JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if about is not None:
        table = table.replace_schema_metadata({"headscope": json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()
