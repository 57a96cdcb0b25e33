"""Adding a thing means adding a file: a toy of each kind is added to a copy of the package, and found."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
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
ROLE = '''\
"""A toy role: attends to the token three before."""

import numpy as np

from headscope.evidence.atlas.role import Role, Scored


def _score(runner):
    prompts = runner.probe.prompts
    places = [np.stack([np.arange(3, len(prompt)), np.arange(len(prompt) - 3)], axis=1) for prompt in prompts]
    score = runner.attention(prompts, {"toy": places})["toy"]
    return Scored(heads=runner.heads, score=score, chance=np.full(len(runner.heads), 0.02))


ROLE = Role(
    name="toy", order=99, letter="T", colour="#000000", sentence="attends three back", look_alike="none", score=_score
)
'''


SOURCE = '''\
"""Toys."""

from headscope.model.backbone import Backbone
from headscope.model.sources import Found

PLACE = 99


def found(given, options):
    """A toy."""
    if given != "a toy":
        return None
    backbone = Backbone(
        module=None,
        call=None,
        family="toy",
        embedding=None,
        unembedding=None,
        n_embeddings=2,
        n_predicted=2,
        max_tokens=None,
    )
    return Found(backbone=backbone, tokenizer=None, name="toy")
'''


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The package with the toys in it."""
    root = tmp_path_factory.mktemp("house")
    package = root / "headscope"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "demo_model", "bundle"))
    (package / "cli" / "commands" / "toy.py").write_text(COMMAND)
    (package / "evidence" / "atlas" / "roles" / "toy.py").write_text(ROLE)
    (package / "model" / "sources" / "toy.py").write_text(SOURCE)
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


@pytest.fixture(scope="module")
def role_and_source(copied):
    """Of one process, since each that runs a model takes seconds to start."""
    code = (
        "import headscope as hs\n"
        "from headscope.model.sources import Options, find\n"
        "from headscope.planted.handbuilt import handbuilt\n"
        "built = handbuilt(decoys=['positional'], offset=3, vocab_size=64, n_positions=96)\n"
        "atlas = hs.atlas(built.model, 'toy', quick=True, n_prompts=4)\n"
        "heads = [one.head for one in atlas.findings if one.has_score]\n"
        "print([role.name for role in atlas.roles], heads == built.heads('positional'))\n"
        "print(find('a toy', Options()).name)"
    )
    return run(copied, code).splitlines()


def test_a_role_of_the_atlas_is_one_file(role_and_source):
    assert len(ADDITIONS["role"]) == 1
    assert role_and_source[0] == "['toy'] True"


def test_a_source_of_models_is_one_file(role_and_source):
    assert len(ADDITIONS["source"]) == 1
    assert role_and_source[1] == "toy"


def test_the_map_of_the_code_is_the_one_in_the_docs():
    assert (ROOT / "docs/generated/map.md").read_text() == code_map(), (
        "run: python -m scripts.house > docs/generated/map.md"
    )


SAY_PLAINLY = re.compile(
    r"\b(foretold|foretells?|(told|tells?|tell) (them |these |look-alikes )?apart|held against|put back|puts back|"
    r"made sure of|stands? for itself|anew|luck)\b",
    re.IGNORECASE,
)
FORMER_NAMES = re.compile(
    r"\b(World|twins(?!\")|[tT]eam|(?<!Transformer )Circuits|[cC]ourse|[dD]esk|Aside|[bB]ench|[mM]eter|Swap|"
    r"[sS]heet|hush)\b"
)
"""Words for which there is a better one; `twin` remains the name of a field of behaviours' pairs."""
PATHS_THAT_WERE = ROOT / "src/headscope/moved.py"


def texts() -> Iterator[tuple[str, str]]:
    """(place, line) of everything that is written here for a reader, notebooks' cells without their outputs too."""
    folders = {"src/headscope": ["py"], "docs": ["md"], "web/src": ["ts", "tsx", "json"], "benchmarks": ["py"]}
    paths = [path for folder, ends in folders.items() for end in ends for path in (ROOT / folder).rglob(f"*.{end}")]
    for path in [*paths, *ROOT.glob("*.md")]:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", line
    for path in (ROOT / "docs/course").glob("*.ipynb"):
        for number, cell in enumerate(json.loads(path.read_text())["cells"]):
            yield from ((f"{path.name}, cell {number}", line) for line in "".join(cell["source"]).splitlines())


@pytest.mark.parametrize("say", ["The rest is drawn anew.", "Patching tells them apart.", "bring it back with luck"])
def test_a_word_that_stops_a_reader_is_found(say):
    assert SAY_PLAINLY.search(say)


def test_words_that_stop_a_reader_are_gone():
    lines = list(texts())
    assert len(lines) > 45_000
    assert not [f"{place} says {found[0]!r}" for place, line in lines if (found := SAY_PLAINLY.search(line))]


def test_one_word_for_one_thing():
    places = [*(ROOT / "src/headscope").rglob("*.py"), *(ROOT / "web/src").rglob("*.ts*")]
    names = {str(path.relative_to(ROOT)) for path in places if path != PATHS_THAT_WERE}
    found = [
        f"{place} says {match[0]!r}"
        for place, line in texts()
        if place.rpartition(":")[0] in names and (match := FORMER_NAMES.search(line))
    ]
    assert len(names) > 150
    assert not found


@pytest.mark.parametrize(
    ("rule", "section"),
    [("reportPrivateUsage", "Names that begin with"), ("reportUnknown", "What a library leaves open")],
)
def test_files_excepted_from_a_rule_are_listed_with_the_reason(rule, section):
    excepted = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(f"^# pyright: .*{rule}", path.read_text(), re.MULTILINE)
    }
    text = (ROOT / "docs/decisions/types.md").read_text().partition(f"**{section}")[2].partition("\n\n**")[0]
    listed = re.findall(r"`([\w/]+\.py)`", text)
    assert set(listed) == excepted
    assert len(listed) == len(excepted) > 5


def test_a_name_means_one_thing():
    owners: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        for name in re.findall(r"^(?:class )?(\w+)(?:[(:]| = Literal\[)", path.read_text(), re.MULTILINE):
            owners.setdefault(name, []).append(path.relative_to(PACKAGE).as_posix())
    assert len(owners["ModelInfo"]) == 1
    meant_twice = ("Rule", "Kind", "Pair", "Change", "Draw", "Evidence", "Controls", "World", "Course")
    assert not {name: owners[name] for name in meant_twice if len(owners.get(name, [])) > 1}


def test_whoever_catches_everything_says_why():
    broad = re.compile(r"^ *except( (Base)?Exception\b.*)?:")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in PACKAGE.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if broad.match(line) and not re.search(r":  # \w", line)
    ]
    assert not found
    assert broad.match("    except Exception as error:")
    assert broad.match("except:")
    assert not broad.match("    except ValueError as error:")
