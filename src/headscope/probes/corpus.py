"""Python source that every machine with this interpreter already has: its standard library.

A text to train on that needs no download and no licence question. What is in it depends on the Python
version alone: files that the build writes (`_sysconfigdata_*`, `config-*`), test folders and installed
packages are left out. A module is held out of training when a hash of its path says so, so the split is
the same on every machine and does not move when a module is added.

Misleading as: an example of text in general. It is one language, much of it by a few hands.
"""

import hashlib
import sysconfig
from pathlib import Path

from headscope.errors import ArgumentError

HELD_OUT_ONE_IN = 20
"""One module in so many is held out, on average."""

_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
_SKIPPED_PREFIXES = ("_sysconfigdata_", "config-")


def stdlib_modules(stdlib: Path | None = None) -> list[Path]:
    """Paths of the standard library's Python sources, relative to it, sorted by their POSIX spelling.

    Args:
        stdlib: The folder to list; the running interpreter's own when None.

    Raises:
        ArgumentError: The folder holds no Python source.
    """
    root = _stdlib_folder(stdlib)
    found = [path.relative_to(root) for path in root.rglob("*.py") if not _is_skipped(path.relative_to(root))]
    if not found:
        raise ArgumentError(
            f"stdlib_modules: {root} holds no Python source; a folder with the standard library's .py "
            f"files is needed. Use an interpreter that ships them."
        )
    return sorted(found, key=lambda path: path.as_posix())


def is_held_out(module: Path) -> bool:
    """Whether a module is kept for testing: SHA-256 of its POSIX path, first 8 bytes, divides by 20."""
    digest = hashlib.sha256(module.as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def stdlib_sources(*, held_out: bool, stdlib: Path | None = None) -> list[str]:
    """The text of every module on one side of the split, in the order of `stdlib_modules`.

    Args:
        held_out: True for the modules kept for testing, False for those to train on.
        stdlib: The folder to read; the running interpreter's own when None.

    Raises:
        ArgumentError: The folder holds no Python source.
    """
    root = _stdlib_folder(stdlib)
    return [
        (root / module).read_text(encoding="utf-8")
        for module in stdlib_modules(root)
        if is_held_out(module) == held_out
    ]


def _stdlib_folder(stdlib: Path | None) -> Path:
    return Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib


def _is_skipped(module: Path) -> bool:
    return not _SKIPPED_FOLDERS.isdisjoint(module.parts) or module.parts[0].startswith(_SKIPPED_PREFIXES)
