"""What a page says it was made by: the Python call, or the command line."""

from __future__ import annotations

import json
import re
import sys

import pytest

import headscope as hs
from headscope.page.call import python_call
from headscope.page.report import report
from headscope.records.common import program


def ready(results):
    return dict(scan=results.scan, verification=results.verification, circuit=results.circuit)


@pytest.mark.parametrize(
    ("given", "named", "written"),
    [
        (("demo", "r.html"), {"seed": 3, "top": 5}, "report('demo', 'r.html', seed=3, top=5)"),
        (("demo", "r.html"), {"seed": 0, "natural": None, "results": ()}, "report('demo', 'r.html')"),
        (("demo", "r.html"), {"heads": ["L1H5", (0, 4)]}, "report('demo', 'r.html', heads=['L1H5', 'L0H4'])"),
        (("demo", "r.html"), {"heads": iter(["L1H5"])}, "report('demo', 'r.html', heads=heads)"),
        (("demo", "r.html"), {"natural": "it's"}, """report('demo', 'r.html', natural="it's")"""),
        (("demo", "r.html"), {"natural": "so " * 100}, "report('demo', 'r.html', natural=natural)"),
        ((object(), "r.html"), {"scan": object()}, "report(model, 'r.html', scan=scan)"),
    ],
)
def test_what_can_be_written_down_is_and_the_rest_has_its_name(given, named, written):
    assert python_call("report", *given, **named) == f"headscope.{written}"


def test_a_written_call_can_be_run(tmp_path):
    path = str(tmp_path / "a 'name'.html")
    heads = ["L1H5"]
    text = python_call("report", "demo", path, heads=heads, natural="it's", n_prompts=4)
    asked = eval(text, {"headscope": type("Called", (), {"report": staticmethod(lambda *a, **b: (a, b))})})
    assert asked == (("demo", path), {"heads": heads, "natural": "it's", "n_prompts": 4})


def test_a_page_made_from_python_holds_its_call(results, tmp_path):
    path = report(results.model, tmp_path / "r.html", **ready(results))
    found = re.search(r'id="document">(.*?)</script>', path.read_text())
    assert found
    held = json.loads(found[1])["provenance"]["command"]
    assert held == f"headscope.report(model, {str(path)!r}, scan=scan, verification=verification, circuit=circuit)"
    shown = hs.view(results.model, **ready(results)).document["provenance"]["command"]
    assert shown == "headscope.view(model, scan=scan, verification=verification, circuit=circuit)"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/usr/bin/headscope", "scan", "my model"], "headscope scan 'my model'"),
        (["/site-packages/headscope/__main__.py", "scan", "demo"], "headscope scan demo"),
        (["/lib/ipykernel_launcher.py", "-f", "/home/ann/kernel-1.json"], "a notebook"),
        (["/home/ann/train.py", "--lr", "3"], "train.py --lr 3"),
        ([""], "python"),
        (["-c"], "python"),
    ],
)
def test_a_program_is_named_as_a_shell_reads_it(monkeypatch, argv, said):
    monkeypatch.setattr(sys, "argv", argv)
    assert program() == said
