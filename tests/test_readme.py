"""Every command in README.md is run, those on a hub's model on a stand-in that lies in the hub's cache.

Console blocks, which show what `demo` gives, are held by tests/test_docs.py; the two `make` targets by the gate, which
runs both on a fresh clone. A command that serves is run up to the address that it announces, tests/cli/test_explore.py
goes on from there; `python -m ...` is run with --help, since a benchmark takes minutes.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from headscope.cli.main import main
from headscope.explore import server
from headscope.training.demo import demo_path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = "".join(re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL))
LINES = [line.split("  #")[0].strip() for line in SHELL.splitlines()]
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL))
COMMANDS = list(dict.fromkeys(line for line in (*LINES, *SPANS) if re.match(r"(headscope|make|python -m) \w", line)))


def of(program: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(program)]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """GPT-2's architecture, tiny and random, with the tokenizer of `demo`, as a download leaves it in the cache."""
    cache = tmp_path_factory.mktemp("hub")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = cache / "models--gpt2" / "snapshots" / commit
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1024, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(snapshot)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_path() / name, snapshot)
    (cache / "models--gpt2" / "refs").mkdir()
    (cache / "models--gpt2" / "refs" / "main").write_text(commit)
    return cache


@pytest.mark.parametrize("command", of("headscope"))
def test_a_command_of_the_readme_runs(command, gpt2, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(gpt2))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(gpt2))
    monkeypatch.setattr(server, "serve", lambda model, *, announce, **_: announce(f"http://127.0.0.1/#{model.id}"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text("def first(values):\n    return values[0]\n\ndef last(values):\n    return")
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    code = None
    try:
        main()
    except SystemExit as end:
        code = end.code
    printed = capsys.readouterr()
    assert not code, printed.err
    assert ("demo" if " demo" in command else "gpt2") in printed.out


@pytest.mark.parametrize("command", of("python -m"))
def test_a_module_of_the_readme_is_there(command, monkeypatch, capsys):
    module = shlex.split(command)[2]
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code in (0, None)
    assert "usage" in capsys.readouterr().out


def test_the_gate_runs_the_make_targets_and_nothing_is_left_out():
    assert of("make") == ["make demo", "make test"]
    gate = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^make .*\bdemo .*\|\| failed=1$", gate, re.MULTILINE)
    assert re.search(r"^make test \|\| failed=1$", gate, re.MULTILINE)
    # All of `make check` is in it.
    parts = re.search(r"^check: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(parts) <= set(re.findall(r"\w+", gate))
    assert len(of("headscope")) == README.count("`headscope ") + sum(line.startswith("headscope ") for line in LINES)


def test_the_figures_are_those_of_the_benchmarks():
    table = re.compile(r"^\| work \| measured \| bar \|\n(?:\|.*\n)+", re.MULTILINE)
    assert table.search(README)[0] == table.search((ROOT / "benchmarks" / "RESULTS.md").read_text())[0]
