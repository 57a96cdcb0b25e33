"""The user's files, read and written with one clear line where they cannot be."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headscope.errors import ArgumentError, TokenError


def read_text(path: Path) -> str:
    """A UTF-8 file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(
            f"{str(path)!r} cannot be read as UTF-8 text: {getattr(error, 'strerror', None) or error}."
        ) from error


def read_token_lists(path: Path) -> Any:
    """A JSON file of token ids."""
    try:
        return json.loads(read_text(path))
    except (RecursionError, ValueError) as error:
        raise TokenError(f"{str(path)!r} is not JSON ({error}); write a list of lists of token ids.") from error


def check_out(out: Path | None, *, file: bool = False) -> None:
    """Refuse a place where results cannot be saved before the work, rather than after it. Nothing is made.

    Args:
        out: A folder, which need not be there yet; None is no place at all.
        file: It is a file instead.
    """
    if out is None:
        return
    with saving(out):
        if file and out.is_dir():
            raise ArgumentError(f"{str(out)!r} is a folder; name a file in it.")
        folder = out.parent if file else out
        there = next(one for one in (folder, *folder.parents) if one.exists())
        problem = errno.ENOTDIR if not there.is_dir() else 0 if os.access(there, os.W_OK | os.X_OK) else errno.EACCES
        if problem:
            raise OSError(problem, os.strerror(problem))


def save(result: Any, out: Path | None) -> tuple[Path, ...]:
    """Save a result in a folder, if there is one to save it in."""
    if out is None:
        return ()
    with saving(out):
        return result.save(out)


@contextmanager
def saving(out: Path) -> Generator[None, None, None]:
    """Tell in one line why a place cannot be written."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ArgumentError(f"{str(out)!r} cannot be written: {why}; fix that, or name another place.") from error
