"""`headscope explore`: one address on a terminal, a server behind it, and a clean end."""

from __future__ import annotations

import http.client
import json
import re
import signal
from urllib.parse import urlsplit

import pytest

from headscope.explore import server as module
from tests import forked


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_ctrl_c_or_sigterm(signum):
    running = forked.headscope("explore", "demo", "--json", "--seed", "3")
    try:
        said = json.loads(running.stdout.readline())
        assert (said["schema"], said["model"]) == ("headscope.explore/1", "demo")
        address = urlsplit(said["address"])
        assert (address.hostname, address.path) == ("127.0.0.1", "/")
        token = re.fullmatch(r"token=([\w-]{43})", address.fragment)[1]
        connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"<!doctype html>")
        body = json.dumps({"text": "the cat", "off": ["L1H1"]})
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        connection.request("POST", "/api/read", body, headers)
        assert json.loads(connection.getresponse().read())["off"] == [{"layer": 1, "head": 1}]
        connection.close()
        running.send_signal(signum)  # the report is being made meanwhile
        out, err = running.communicate(timeout=60)
        assert (running.returncode, out, err) == (0, "", "")
    finally:
        running.close()


@pytest.fixture
def served(monkeypatch):
    """`serve` without its server; gives what it was called with."""
    calls = []

    def serve(model, *, port, seed, behavior, against, announce):
        assert behavior == []
        calls.append((model.id, port, seed) if against is None else (model.id, port, seed, against.id))
        announce("http://127.0.0.1:1/#token=x")

    monkeypatch.setattr(module, "serve", serve)
    return calls


@pytest.mark.parametrize(("terminal", "flag", "opened"), [(True, [], 1), (True, ["--no-browser"], 0), (False, [], 0)])
def test_a_browser_is_opened_on_a_terminal_alone(headscope, served, monkeypatch, terminal, flag, opened):
    seen = []
    monkeypatch.setattr("webbrowser.open", seen.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    ran = headscope("explore", "demo", "--port", 8123, "--seed", 2, *flag)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "demo: http://127.0.0.1:1/#token=x\nCtrl-C stops it.\n"
    assert served == [("demo", 8123, 2)]
    assert seen == ["http://127.0.0.1:1/#token=x"] * opened


def test_a_second_model_is_opened_alike(headscope, served):
    ran = headscope("explore", "demo", "--against", "demo", "--no-browser", "--seed", 2)
    assert (ran.code, ran.err) == (0, "")
    assert served == [("demo", 0, 2, "demo")]
    ran = headscope("explore", "demo", "--against", "no/such")
    assert ran.code == 2
    assert "no/such" in ran.err


def test_without_its_extra_it_says_what_to_install(headscope, monkeypatch):
    monkeypatch.setattr("headscope.cli.commands.explore.find_spec", lambda name: None)
    ran = headscope("explore", "demo")
    assert ran.code == 2
    assert ran.err == (
        "headscope: headscope explore needs fastapi and uvicorn; install the extra: pip install 'headscope[explore]'.\n"
    )


def test_a_port_that_is_taken_is_said_in_one_line(headscope):
    with module.listening(0) as listener:
        ran = headscope("explore", "demo", "--port", listener.getsockname()[1])
    assert ran.code == 2
    assert re.fullmatch(r"headscope: port \d+ cannot be listened on: Address already in use; name .*\n", ran.err)


def test_help_shows_an_example(headscope):
    ran = headscope("explore", "--help")
    assert ran.code == 0
    assert "headscope explore demo --no-browser" in ran.out
