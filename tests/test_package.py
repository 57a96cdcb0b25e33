"""The package as a whole: its names, its versions, what it imports, and what its wheel holds."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import warnings
import zipfile
from graphlib import TopologicalSorter
from importlib import import_module

import jaxtyping
import pytest
import torch

import headscope
from headscope import moved
from scripts.house import PACKAGE, RANKS, ROOT, UPWARD, imports_of, module_exists, part

SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_every_exported_name_loads():
    for name in headscope.__all__:
        assert getattr(headscope, name) is not None
    assert {*headscope.__all__} <= set(dir(headscope))


def test_the_list_of_names_is_sorted_by_their_homes():
    # The stub is the one list: type checkers read it, and the loader does.
    stub = (PACKAGE / "__init__.pyi").read_text().splitlines()
    homes = [line.split()[1] for line in stub if line.startswith("from ")]
    assert homes == sorted(homes)


def test_every_exported_name_is_documented():
    pages = "".join(page.read_text() for page in sorted((ROOT / "docs/api").glob("*.md")))
    documented = re.findall(r"^::: headscope\.(\w+)$", pages, flags=re.MULTILINE)
    assert sorted(documented) == sorted([*headscope.__all__, "errors"])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = headscope.nothing


def test_the_changelog_opens_with_what_is_unreleased_and_the_version_of_the_package():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert versions[0] == "Unreleased"
    assert versions[1] == headscope.__version__ == project["version"]


def test_setup_pins_every_core_dependency_and_every_pin_is_exact():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().lower().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    needed = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert {re.split(r"[<>=\[]", one)[0] for one in needed} <= set(pinned)


HEAVY = ("torch", "transformers", "pandas", "pyarrow", "numpy", "ray", "fastapi", "matplotlib")


@pytest.mark.parametrize("module", ["headscope", "headscope.cli.main"])
def test_importing_loads_no_heavy_library(module):
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_part_has_a_rank():
    parts = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES} - {"__init__", "__main__"}
    assert parts <= set(RANKS)


def test_imports_point_downward():
    edges = {edge for path in SOURCES if path != PACKAGE / "__init__.py" for edge in imports_of(path)}
    # `from headscope import __version__` asks the package for its version alone; only the top may ask for more.
    between = {(a, b) for a, b in edges if b and part(a) != part(b)}
    assert not [(a, b) for a, b in between - set(UPWARD) if RANKS[part(a)] < RANKS[part(b)]]
    graph: dict[str, set[str]] = {}
    for a, b in between - set(UPWARD):
        graph.setdefault(part(a), set()).add(part(b))
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
    assert set(UPWARD) <= edges, "an exception that is no longer needed"


def circles(edges: set[tuple[str, str]]) -> set[frozenset[str]]:
    """Modules that reach each other by imports, imports inside functions and for type checkers included."""
    ahead: dict[str, set[str]] = {}
    for importing, imported in edges:
        ahead.setdefault(importing, set()).add(imported)

    def reached(start: str) -> set[str]:
        seen, rest = set(), [start]
        while rest:
            new = ahead.get(rest.pop(), set()) - seen
            seen |= new
            rest += new
        return seen

    reach = {module: reached(module) for module in ahead}
    mutual = {a: frozenset({b for b in reach[a] if a in reach.get(b, set())}) for a in ahead}
    return {circle for circle in mutual.values() if circle}


def test_no_module_imports_itself_by_a_detour():
    edges = {edge for path in SOURCES if path != PACKAGE / "__init__.py" for edge in imports_of(path)}
    assert circles({("a", "b"), ("b", "c"), ("c", "b"), ("d", "d")}) == {frozenset("bc"), frozenset("d")}
    assert circles({(a, b) for a, b in edges - set(UPWARD) if b}) == set()


@pytest.mark.parametrize(("importing", "imported"), sorted(UPWARD))
def test_an_upward_import_waits_until_it_is_used(importing, imported):
    # At the top of a file it would run at import; inside a function, or for type checkers only, it does not.
    path = PACKAGE.joinpath(*importing.split(".")).with_suffix(".py")
    top = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)]
    assert f"headscope.{imported}" not in {node.module for node in top}


# Libraries that one part alone may import, by the prefix of what is imported. `transformers.utils` is no internal:
# it is the documented home of transformers' logging.
CONFINED = {
    "transformers.": "model",
    "ray": "sweeps",
    "fastapi": "explore",
    "uvicorn": "explore",
    "starlette": "explore",
}


def test_transformers_internals_ray_and_the_web_server_stay_where_they_belong():
    strays = []
    for path in SOURCES:
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                if name == "transformers.utils":
                    continue
                for prefix, owner in CONFINED.items():
                    inside = name.startswith(prefix) if prefix.endswith(".") else name.split(".")[0] == prefix
                    if inside and here != owner:
                        strays.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert not strays


def test_shapes_are_checked_while_testing():
    from headscope.model.kernels import repeat_heads

    kv = torch.zeros(1, 2, 5, 4)
    assert repeat_heads(kv, 4).shape == (1, 4, 5, 4)
    with pytest.raises(jaxtyping.TypeCheckError, match=r"batch kv_head key d"):
        repeat_heads(kv[0], 4)
    with pytest.raises(jaxtyping.TypeCheckError, match="n_heads"):
        repeat_heads(kv, 4.0)  # pyright: ignore[reportArgumentType]


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {
        name.removeprefix("headscope/") for name in zipfile.ZipFile(wheel).namelist() if name.startswith("headscope/")
    }
    files = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.is_file()}
    assert held == {path.as_posix() for path in files if "__pycache__" not in path.parts}
    assert {"py.typed", "training/demo_model/model.safetensors", "training/demo_model/config.json"} <= held


@pytest.mark.parametrize("old", sorted(moved.HOMES))
def test_an_old_module_path_still_imports_and_says_where_it_went(old):
    for home in moved.HOMES[old].split():
        import_module(f"headscope.{home}")
    assert not module_exists(f"headscope.{old}"), "the new house has a module of that name"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a package of the old house warns of itself
        if parent := old.rpartition(".")[0]:
            import_module(f"headscope.{parent}")
    sys.modules.pop(f"headscope.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"headscope.{old} is now headscope.{moved.HOMES[old].split()[0]}"):
        import_module(f"headscope.{old}")


def test_a_name_of_a_split_module_is_found_in_its_new_home():
    from headscope.records.common import Estimate

    sys.modules.pop("headscope.results", None)
    with pytest.warns(DeprecationWarning, match="records.common"):
        old = import_module("headscope.results")
    assert old.Estimate is Estimate
    with pytest.raises(AttributeError, match="nothing_there"):
        _ = old.nothing_there
