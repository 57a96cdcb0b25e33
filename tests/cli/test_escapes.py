"""What others named never reaches a terminal or a picture as something that it obeys: through every command."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.text import Text

import headscope
import headscope as hs
from headscope.cli.commands import commands
from headscope.render import plain
from headscope.training.demo import demo_path

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\x7f=1+1"
OBEYED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
PACKAGE = Path(headscope.__file__).parent


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("a\x07b", r"a\x07b"),
        ("\x9b2J", r"\x9b2J"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
        ("over\rwritten", r"over\rwritten"),
        ("two\nlines\tand a tab, ä, 漢, 🙂", "two\nlines\tand a tab, ä, 漢, 🙂"),
    ],
)
def test_what_a_terminal_obeys_is_shown_as_its_code(text, wanted):
    assert plain.shown(text) == wanted


def test_what_is_printed_by_rich_keeps_its_styles_and_no_other_escape():
    drawn = io.StringIO()
    console = plain.console()
    console.file, console._force_terminal, console.no_color = drawn, True, False
    console._color_system = 3
    console.print(Text(HOSTILE, style="bold red"))
    assert "\x1b[1;31m" in drawn.getvalue()
    assert not OBEYED.search(re.sub(r"\x1b\[[0-9;]*m", "", drawn.getvalue()))


def test_nothing_prints_in_another_way():
    # Only the progress bar writes its own escapes, around a line that is cleaned.
    allowed = {"render/plain.py", "cli/progress.py", "training/demo.py"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("print", "typer.echo", "click.echo", "Console", "sys.stdout.write", "sys.stderr.write"):
                found.add(str(path.relative_to(PACKAGE)))
    assert found <= allowed


def test_no_picture_is_escaped_in_another_way():
    using = {path for path in PACKAGE.rglob("*.py") if "from html import escape" in path.read_text()}
    assert {path.name for path in using} <= {"html.py"}  # a page is no picture: its title alone stands in it as text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The packaged model in a folder with such a name, a store of it, a run's folder, and a file of pairs."""
    root = tmp_path_factory.mktemp("hostile")
    model = root / HOSTILE
    shutil.copytree(demo_path(), model)
    checkpoints = root / f"run {HOSTILE}"
    for step in (1, 2):
        shutil.copytree(demo_path(), checkpoints / f"step-{step:06d}")
    hs.sweep([model], root / "store", settings={"scan": {"n_prompts": 2, "period": 8}})
    line = {"id": HOSTILE, "prompt": "x = [1", "twin": "x = (1", "answer": "]", "other": ")"}
    pairs = root / f"{HOSTILE}.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({**line, "id": f"{HOSTILE}{n}", "prompt": f"x = [{n}", "twin": f"x = ({n}"}) + "\n"
            for n in range(6)
        )
    )
    return root


def asked(root):
    """Each command: with the name where a name may stand, and once so that it is refused."""
    bad, model, run, store = HOSTILE, str(root / HOSTILE), str(root / f"run {HOSTILE}"), str(root / "store")
    few = ["--n-prompts", "2", "--period", "8"]
    return {
        "scan": [[model, *few, "--heatmap", "--out", f"{root}/out{bad}"], [bad], [model, "--detector", bad]],
        "verify": [[bad], [model, "--dtype", bad]],
        "circuit": [[bad], [model, "--head", bad]],
        "report": [[bad], [model, "--out", f"{root}/none/{bad}/x", "--behavior", bad]],
        "explore": [[bad], [model, "--behavior", bad]],
        "sweep": [
            [model, "no/" + bad, "./" + bad, "--store", store, *few], [model, "--what", bad], ["--from", bad],
        ],
        "query": [
            [store, "SELECT model FROM jobs"], [store, bad], [store, f"SELECT '{bad}' AS x"], [bad, "SELECT 1"],
        ],
        "mosaic": [[store, "--out", f"{root}/mosaic.svg"], [store, "--detector", bad], [bad]],
        "train": [["--recipe", bad], ["--config", bad], ["--steps", "1", "--device", bad]],
        "emergence": [[run, *few, "--every", "9"], [run, "--dtype", bad], [bad]],
        "behavior": [[bad, model], [str(root / f"{bad}.jsonl"), model]],
        "check": [[model], [bad], [model, "--dtype", bad]],
        "params": [[model], [bad]],
        "known": [[], [model], [bad]],
        "atlas": [[model, "--quick", "--n-prompts", "4", "--roles", "first_token"], [bad], [model, "--roles", bad]],
        "compare": [
            [model, model, *few, "--out", f"{root}/compare{bad}"],
            [model, bad],
            [model, model, "--dtype", bad],
        ],
    }  # fmt: skip


def test_every_command_is_asked():
    names = {one.__name__ for one in commands()}
    assert names == set(asked(Path()))


@pytest.mark.parametrize("command", sorted(asked(Path())))
def test_no_command_lets_a_hostile_name_through(headscope, hostile, command):
    torch.manual_seed(0)
    for arguments in [*asked(hostile)[command], [f"--{HOSTILE}"], ["--n-prompts", HOSTILE]]:
        done = headscope(command, *arguments)
        for text in (done.out, done.err):
            assert not OBEYED.search(text), (command, arguments, OBEYED.search(text), text[-500:])
        assert done.code in (0, 2)


def test_an_unknown_command_is_shown_as_text(headscope):
    done = headscope(HOSTILE)
    assert not OBEYED.search(done.out + done.err)


def test_pictures_of_a_hostile_store_are_xml_without_controls(headscope, hostile):
    path = hostile / "picture.svg"
    assert headscope("mosaic", str(hostile / "store"), "--out", str(path)).code == 0
    text = path.read_text()
    assert not OBEYED.search(text)
    ElementTree.fromstring(text)
