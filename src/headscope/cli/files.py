"""The user's files, read with one clear line where they cannot be."""

from __future__ import annotations

import json
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
    except ValueError as error:
        raise TokenError(f"{str(path)!r} is not JSON ({error}); write a list of lists of token ids.") from error
