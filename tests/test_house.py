"""Adding a thing means adding a file: a toy of each kind is added to a copy of the package, and found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.house import ADDITIONS, PACKAGE, ROOT, code_map

COMMAND = '''\
"""`headscope toy`: a toy."""

PLACE = 99


def toy() -> None:
    """A toy command."""
    print("toy ran")
'''
KIND = '''\
"""A toy kind of evidence."""

from headscope.evidence.kinds import Kind, Sweepable


class Toy:
    def to_dict(self):
        return {"schema": "headscope.toy/1"}

    @classmethod
    def from_dict(cls, document):
        return cls()


KIND = Kind(
    name="toy",
    order=99,
    schema="headscope.toy/1",
    result=lambda: Toy,
    sweep=Sweepable(
        settings={"seed": 0},
        measure=lambda model, seed: Toy(),
        columns={"seed": "int64"},
        rows=lambda toy: [{"seed": 0}],
    ),
)
'''


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The package with the toys in it."""
    root = tmp_path_factory.mktemp("house")
    package = root / "headscope"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "demo_model", "bundle"))
    (package / "cli" / "commands" / "toy.py").write_text(COMMAND)
    (package / "evidence" / "toy").mkdir()
    (package / "evidence" / "toy" / "__init__.py").write_text("")
    (package / "evidence" / "toy" / "kind.py").write_text(KIND)
    return root


def run(copied: Path, code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(copied)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def test_a_command_is_one_file(copied):
    assert len(ADDITIONS["command"]) == 1
    code = "import sys; sys.argv = ['headscope', 'toy']; from headscope.cli.main import main; main()"
    assert run(copied, code) == "toy ran"


def test_a_kind_of_evidence_is_a_folder_and_its_section(copied):
    assert len(ADDITIONS["evidence"]) == 2
    code = (
        "from headscope.evidence.kinds import kinds, result_of, sweepable\n"
        "from headscope.sweeps.plan import KINDS\n"
        "from headscope.sweeps.tables import TABLES\n"
        "toy = result_of({'schema': 'headscope.toy/1'})\n"
        "print(list(kinds())[-1], 'toy' in KINDS, TABLES['toy'], sweepable()['toy'].rows(toy))"
    )
    assert run(copied, code) == "toy True {'seed': 'int64'} [{'seed': 0}]"


def test_the_map_of_the_code_is_the_one_in_the_docs():
    assert (ROOT / "docs/generated/map.md").read_text() == code_map(), (
        "run: python -m scripts.house > docs/generated/map.md"
    )
