"""The standard library as a text, and its split."""

import hashlib
from pathlib import Path

import pytest

from headscope.errors import ArgumentError
from headscope.probes.corpus import is_held_out, stdlib_modules, stdlib_sources


def test_the_split_is_a_hash_of_the_path_alone():
    # The rule in full, on one module: SHA-256 of the POSIX path, first 8 bytes, big-endian, modulo 20.
    for module in ("argparse.py", "json/decoder.py", "asyncio/base_events.py"):
        first_bytes = hashlib.sha256(module.encode()).digest()[:8]
        assert is_held_out(Path(module)) == (int.from_bytes(first_bytes, "big") % 20 == 0)


def test_about_one_module_in_twenty_is_held_out():
    modules = [Path(f"package/module_{number}.py") for number in range(4000)]
    # 4000 / 20 = 200, standard deviation sqrt(4000 * 0.05 * 0.95) = 14: four of them is 56.
    assert abs(sum(map(is_held_out, modules)) - 200) < 56


def test_the_two_sides_are_disjoint_and_cover_every_module():
    modules = stdlib_modules()
    held_out, kept = stdlib_sources(held_out=True), stdlib_sources(held_out=False)
    assert len(held_out) == sum(map(is_held_out, modules))
    assert len(held_out) + len(kept) == len(modules)
    assert len(modules) > 300


def test_tests_packages_and_build_products_are_left_out(tmp_path: Path):
    wanted = ["b.py", "a/__init__.py", "a/testing.py"]
    unwanted = [
        "test/t.py",
        "a/tests/t.py",
        "site-packages/x.py",
        "a/__pycache__/c.py",
        "_sysconfigdata__linux_x86_64-linux-gnu.py",
        "config-3.11-x86_64-linux-gnu/python-config.py",
        "a/data.txt",
    ]
    for name in wanted + unwanted:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    assert [module.as_posix() for module in stdlib_modules(tmp_path)] == sorted(wanted)
    texts = stdlib_sources(held_out=True, stdlib=tmp_path) + stdlib_sources(held_out=False, stdlib=tmp_path)
    assert sorted(texts) == sorted(f"# {name}\n" for name in wanted)


def test_an_empty_folder_is_refused(tmp_path: Path):
    with pytest.raises(ArgumentError, match="holds no Python source"):
        stdlib_modules(tmp_path)
