"""The map of the code: its parts, their ranks, and what may import what.

    python -m scripts.house            the map as Markdown: docs/generated/map.md
    python -m scripts.house --json     the same as JSON, with the files that each kind of addition takes

Imports point down the ranks; `tests/test_package.py` holds them to it.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "headscope"

RANKS: dict[str, int] = {
    **dict.fromkeys(["errors", "heads", "stats", "stopping", "moved"], 0),
    "model": 1,
    **dict.fromkeys(["records", "detectors", "probes", "render"], 2),
    "interventions": 3,
    "evidence": 4,
    "training": 5,
    "planted": 6,
    **dict.fromkeys(["sweeps", "page", "explore"], 7),
    **dict.fromkeys(["cli", "lesson"], 8),
    "__main__": 9,
}
"""A part may import parts of a lower rank, and its equals as long as no circle arises."""

UPWARD: dict[tuple[str, str], str] = {
    (
        "model.sources.pretrained",
        "training.demo",
    ): "`demo` is a name that load knows; the folder is asked for only then",
}
"""Imports that point up, made inside the function that needs them, and why each is there."""

ADDITIONS: dict[str, tuple[str, ...]] = {
    "command": ("src/headscope/cli/commands/NAME.py",),
    "role": ("src/headscope/evidence/atlas/roles/NAME.py",),
    "source": ("src/headscope/model/sources/NAME.py",),
    "evidence": ("src/headscope/evidence/NAME/", "web/src/sections/NAME.tsx"),
}
"""The files that each kind of addition takes; `tests/test_house.py` adds a toy of each."""


def imports_of(path: Path, package: Path = PACKAGE) -> Iterator[tuple[str, str]]:
    """(importing module, imported module) without the leading `headscope.`, for imports within the package.

    The package itself, which loads its names when used, counts as a module "".
    """
    here = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if module_exists(name) else node.module for name in inside]
        yield from ((here, name.removeprefix("headscope").lstrip(".")) for name in names if is_ours(name))


def is_ours(name: str) -> bool:
    """Whether a module is headscope's."""
    return name == "headscope" or name.startswith("headscope.")


def module_exists(name: str) -> bool:
    """Whether a module of headscope is there, by its full name."""
    place = PACKAGE.parent.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def part(module: str) -> str:
    """The part of the package that a module belongs to."""
    return module.split(".")[0]


def idea(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return text.split("\n\n")[0].replace("\n", " ").strip()


def code_map() -> str:
    """The map as Markdown: a table of parts from the top down, then the files of each."""
    lines = ["| rank | part | idea |", "| --- | --- | --- |"]
    for name, rank in sorted(RANKS.items(), key=lambda item: (-item[1], item[0])):
        file = PACKAGE / f"{name}.py"
        path = file if file.exists() else PACKAGE / name / "__init__.py"
        lines.append(
            f"| {rank} | `{path.relative_to(PACKAGE).as_posix().removesuffix('/__init__.py')}` | {idea(path)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the map."""
    parser = argparse.ArgumentParser(prog="python -m scripts.house", description="The map of the code.")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    if parser.parse_args().json:
        document: dict[str, Any] = {
            "ranks": RANKS,
            "files_to_add": {name: list(files) for name, files in ADDITIONS.items()},
        }
        print(json.dumps(document, indent=1))
    else:
        print(code_map(), end="")


if __name__ == "__main__":
    main()
