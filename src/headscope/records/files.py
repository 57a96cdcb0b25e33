"""Files of results: JSON documents read strictly, and files written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, cast

from headscope.errors import ArgumentError, brief
from headscope.stopping import uninterrupted


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number that a document holds")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number that a document holds")
    return value


def read_document(path: str | Path, name: str) -> dict[str, Any]:
    """The JSON document in a file, or in the file of this name in a folder.

    Raises:
        ArgumentError: there is no such file, or it holds no document.
    """
    path = Path(path)
    file = path / name if os.path.isdir(path) else path  # Path.is_dir raises where the system refuses the name
    kind = Path(name).stem
    try:
        document: Any = json.loads(
            file.read_text(encoding="utf-8"), parse_constant=_refuse_constant, parse_float=_finite
        )
    except (OSError, RecursionError, ValueError) as error:
        raise ArgumentError(
            f"{str(file)!r} cannot be read as {'an' if kind[:1] in 'aeiou' else 'a'} {kind}: {brief(error)}"
        ) from error
    return cast("dict[str, Any]", document) if isinstance(document, dict) else {}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename: other readers see the old file or the new one."""
    with uninterrupted():
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:  # a KeyboardInterrupt too leaves no temporary file
            os.unlink(temporary)
            raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
