"""Partial results: shared readings and finished roles in a folder, so that a run that was cut off goes on.

    FOLDER/jobs/KEY-NAME.safetensors    arrays of a shared reading
    FOLDER/jobs/KEY-NAME.json           a finished role

KEY is a digest of the model's fingerprint, of what else it is read by, like its config and tokenizer, the settings and
the program's version: what was measured for another model, tokenizer, seed or version is not taken. Files are written
whole and say what they are; one that is damaged, or something else by its own account, is measured again.
"""

# pyright: reportUnknownVariableType=false
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headscope.errors import ArgumentError
from headscope.records.files import read_document, write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Where partial results are kept."""

    folder: Path | None
    """None: nowhere."""
    key: str
    """What they belong to."""

    @classmethod
    def nowhere(cls) -> Keep:
        """Keeps nothing."""
        return cls(folder=None, key="")

    @classmethod
    def at(cls, folder: str | Path | None, **settings: Any) -> Keep:
        """In a folder, for these settings. The folder is made when something is kept.

        Args:
            folder: The results' folder; None keeps nothing.
            settings: JSON-ready; everything that the numbers depend on.
        """
        text = json.dumps(settings, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(folder=None if folder is None else Path(folder) / "jobs", key=key)

    def arrays(self, name: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What is kept under a name, or what `compute` gives, which is kept."""
        from safetensors import SafetensorError, safe_open
        from safetensors.numpy import save

        path, label = self._path(f"{name}.safetensors"), {"key": self.key, "name": name}
        if path is not None and path.is_file():
            try:
                with safe_open(path, "np") as kept:
                    if kept.metadata() == label:
                        return {one: kept.get_tensor(one) for one in kept.keys()}  # noqa: SIM118
            except (SafetensorError, OSError):
                pass  # damaged: measured again
        found = {one: np.ascontiguousarray(values) for one, values in compute().items()}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, save(found, metadata=label))
        return found

    def document(self, name: str) -> dict[str, Any] | None:
        """The document kept under a name; None where there is none, or it is damaged."""
        path = self._path(f"{name}.json")
        if path is None or not path.is_file():
            return None
        try:
            return read_document(path, path.name)
        except ArgumentError:
            return None

    def write(self, name: str, document: dict[str, Any]) -> None:
        """Keep a document under a name."""
        path = self._path(f"{name}.json")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(document, allow_nan=False) + "\n").encode())

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.key}-{name}"
