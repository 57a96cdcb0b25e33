"""`headscope report`: its document is the API's, its file is a page, and it says where that is."""

from __future__ import annotations

import json
import re

import pytest

import headscope as hs
from headscope.page import report as module


def comparable(value):
    """Without what differs from run to run: seconds, and the command."""
    if isinstance(value, dict):
        return {key: comparable(one) for key, one in value.items() if key not in ("wall_s", "command")}
    return [comparable(one) for one in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="module")
def document():
    return module.report_document("demo", seed=3, n_prompts=8)


@pytest.fixture
def at_once(monkeypatch, document):
    """The report without its minutes of work; gives the arguments it was called with."""
    calls = []

    def give(model, **options):
        calls.append((model.id, options))
        return document

    monkeypatch.setattr(module, "report_document", give)
    return calls


def held(path):
    """The document in a page."""
    found = re.search(r'<script type="application/json" id="document">(.*?)</script>', path.read_text())
    return json.loads(found[1])


def test_json_equals_the_api_and_the_file(headscope, document, tmp_path):
    path = tmp_path / "report.html"
    ran = headscope("report", "demo", "--seed", 3, "--n-prompts", 8, "--json", "--out", path)
    assert (ran.code, ran.err) == (0, "")
    printed = json.loads(ran.out)
    assert printed["schema"] == "headscope.report/1"
    assert printed["provenance"]["command"] == f"headscope report demo --seed 3 --n-prompts 8 --json --out {path}"
    assert comparable(printed) == comparable(json.loads(json.dumps(document)))
    assert held(path) == printed


def test_it_prints_the_finding_and_where_the_page_is(headscope, at_once, document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = headscope("report")  # demo by default, into report.html
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(document["finding"]["sentence"] + "\n")
    assert re.search(r"^Report: report\.html \(0\.\d MB\)$", ran.out, flags=re.MULTILINE)
    assert comparable(held(tmp_path / "report.html")) == comparable(json.loads(json.dumps(document)))
    assert [(name, options["seed"], options["natural"]) for name, options in at_once] == [("demo", 0, None)]


def test_json_alone_writes_no_file(headscope, at_once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert headscope("report", "--json").code == 0
    assert list(tmp_path.iterdir()) == []


def test_text_reaches_the_api(headscope, at_once, tmp_path):
    (tmp_path / "story.txt").write_text("once upon a time")
    headscope("report", "--natural", tmp_path / "story.txt", "-o", tmp_path / "r.html")
    assert at_once[0][1]["natural"] == "once upon a time"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "{}"], r"is a folder; name a file in it, like '.*report\.html'\."),
        (["-o", "{}/file/report.html"], r"cannot be written: .*; name another file\."),
        (["--natural", "{}/nothing.txt", "-o", "{}/r.html"], r"nothing\.txt' cannot be read as UTF-8 text"),
        (["--natural", "{}/short.txt", "-o", "{}/r.html"], r"the natural text has \d+ tokens; it needs at least"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(headscope, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    (tmp_path / "short.txt").write_text("too short")
    ran = headscope("report", *(one.format(tmp_path) for one in arguments))
    assert ran.code == 2
    assert re.search(message, ran.err)
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "r.html").exists()


def test_help_shows_an_example(headscope):
    ran = headscope("report", "--help")
    assert ran.code == 0
    assert "headscope report demo -o results/demo/report.html" in ran.out


def test_the_model_is_checked_before_the_file(headscope, tmp_path):
    ran = headscope("report", str(tmp_path / "nothing"), "-o", tmp_path / "r.html")
    assert ran.code == 2
    assert list(tmp_path.iterdir()) == []


def test_the_errors_are_headscopes(tmp_path):
    with pytest.raises(hs.HeadscopeError):
        module.writable(tmp_path)


def test_settings_and_saved_results_reach_the_api(headscope, at_once, tmp_path):
    scan = hs.scan("demo", probe=hs.repeated_tokens(hs.load("demo"), n_prompts=2, period=5))
    scan.save(tmp_path)
    ran = headscope(
        "report", "demo", "--from", tmp_path, "--n-prompts", 4, "--period", 6, "--head", "L1H1", "--top", 3,
        "-o", tmp_path / "r.html",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    (_, options), *_ = at_once
    assert {name: options[name] for name in ("n_prompts", "period", "heads", "top", "scan")} == {
        "n_prompts": 4, "period": 6, "heads": ["L1H1"], "top": 3, "scan": scan,
    }  # fmt: skip


def test_a_line_comes_before_the_model_is_opened(headscope, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    said = headscope("report", "/no/such/model")
    assert said.code == 2
    assert said.err.startswith("/no/such/model: scan, verify and circuit, then the page;")
