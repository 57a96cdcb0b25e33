"""The examples of README.md and docs/ run as they stand.

In each file the ```python blocks share one namespace, in order. Each command `headscope ...` of a ```console block
(after `$ `) or a ```sh block runs as a user's would, in an empty folder. What a console block shows beneath a command
must be what it prints: the same words, numbers within 0.02 or 5%, and `...` for anything. A block that needs more than
the packaged model follows a comment that says so: <!-- not run: it downloads gpt2 -->
"""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pytest import approx

ROOT = Path(__file__).parents[1]
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))] if path.exists()]
BLOCK = re.compile(r"^```(python|console|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\n+$")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")


@dataclass(frozen=True, slots=True)
class Example:
    kind: str
    body: str
    line: int


def examples(text: str) -> list[Example]:
    """The blocks to run, with the line that each starts on."""
    return [
        Example(found[1], found[2], text.count("\n", 0, found.start(2)) + 1)
        for found in BLOCK.finditer(text)
        if not NOT_RUN.search(text, 0, found.start())
    ]


def commands(example: Example) -> list[tuple[str, str]]:
    """(command, what is shown beneath it) for each `headscope ...` of a block."""
    pairs: list[tuple[str, str]] = []
    for line in example.body.replace("\\\n", " ").splitlines():
        if example.kind == "sh" or line.startswith("$ "):
            pairs.append((line.removeprefix("$ "), ""))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]}{line}\n")
    return [(command, shown) for command, shown in pairs if command.startswith("headscope ")]


def assert_shows(printed: str, shown: str) -> None:
    words = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in NUMBER.split(shown.strip())]
    pattern = f"({NUMBER.pattern})".join(words).replace(re.escape("..."), ".*?")
    found = re.fullmatch(pattern, printed.strip(), re.DOTALL)
    assert found, f"shown:\n{shown}\nprinted:\n{printed}"
    assert [float(one) for one in found.groups()] == [
        approx(float(one), rel=0.05, abs=0.02) for one in NUMBER.findall(shown)
    ]


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line in this process; any exit but 0 fails."""
    from headscope.cli.main import main

    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    code = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    assert not code, f"{command!r} ends with exit code {code}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_run(page, tmp_path, tmp_path_factory, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = tmp_path_factory.mktemp("examples") / f"{page.stem}.py"
    namespace: dict[str, object] = {"__name__": "__main__"}
    for example in examples(page.read_text()):
        if example.kind == "python":
            # In a file, since libraries read the source of what calls them; blank lines in front, so that a traceback
            # names the page's own line.
            script.write_text("\n" * (example.line - 1) + example.body)
            exec(compile(script.read_text(), str(script), "exec"), namespace)
            continue
        for command, shown in commands(example):
            capsys.readouterr()
            run(command, monkeypatch)
            if shown:
                assert_shows(capsys.readouterr().out, shown)


def test_the_harness_finds_blocks_commands_and_differences():
    text = "a\n```python\nx = 1\n```\n<!-- not run: no network -->\n\n```sh\nheadscope a\n```\n"
    text += "```console\n$ headscope b\nL1H1 0.91\n```\n"
    assert [(one.kind, one.line) for one in examples(text)] == [("python", 3), ("console", 11)]
    assert commands(examples(text)[1]) == [("headscope b", "L1H1 0.91\n")]
    assert_shows("L1H1   0.92  in 3.1 s", "L1H1 0.91 in ...")
    for other in ("L1H2 0.91 in 3 s", "L1H1 0.97 in 3 s"):
        with pytest.raises(AssertionError):
            assert_shows(other, "L1H1 0.91 in ...")
