"""Finding and installing a browser: what runs is taken, each way to install is tried, a machine without one says so."""

from __future__ import annotations

import pytest

from scripts import browser


@pytest.fixture
def machine(monkeypatch):
    """A machine: paths by name, those that start, and what each command that installs does to them."""
    paths: dict[str, str] = {}
    starts: set[str] = set()
    commands: list[str] = []
    effects: dict[str, str | None] = {}

    def tried(given, seconds):
        command = " ".join(given[-1])
        commands.append(command)
        path = next(path for part, path in effects.items() if part in command)
        if path is None:
            return "Error: no route"
        starts.add(path)
        return None

    monkeypatch.setattr(browser.shutil, "which", paths.get)
    monkeypatch.setattr(browser, "_runs", lambda path: path in starts)
    monkeypatch.setattr(browser, "_downloaded", lambda: "/cache/chrome" if "/cache/chrome" in starts else None)
    monkeypatch.setattr(browser, "_tried", tried)
    monkeypatch.setattr(browser.os, "geteuid", lambda: 0)
    machine.paths, machine.starts, machine.commands, machine.effects = paths, starts, commands, effects
    return machine


def test_a_browser_that_is_there_is_used_and_nothing_installed(machine):
    machine.paths["google-chrome"] = "/opt/chrome"
    machine.starts.add("/opt/chrome")
    assert browser.install() == browser.find() == "/opt/chrome"
    assert machine.commands == []


def test_a_program_that_does_not_start_is_passed_over(machine):
    machine.paths |= {"chromium": "/snap/stub", "google-chrome": "/opt/chrome"}
    machine.starts.add("/opt/chrome")
    assert browser.find() == "/opt/chrome"


def test_playwrights_download_comes_before_the_systems_packages(machine):
    machine.effects |= {"playwright install": "/cache/chrome"}
    assert browser.install() == "/cache/chrome"
    assert len(machine.commands) == 1


def test_where_nothing_is_downloaded_the_package_is_installed(machine, capsys):
    machine.paths |= {"apt-get": "/usr/bin/apt-get", "chromium": "/usr/bin/chromium"}
    machine.effects |= {"playwright install": None, "apt-get": "/usr/bin/chromium"}
    assert browser.install() == "/usr/bin/chromium"
    assert capsys.readouterr().err == "browser: playwright's download: Error: no route\n"


@pytest.mark.parametrize(("user", "apt", "reason"), [(1000, True, "sudo apt-get install"), (0, False, "not on this")])
def test_without_any_the_reasons_are_said_and_the_command_goes_on(machine, monkeypatch, capsys, user, apt, reason):
    monkeypatch.setattr(browser.os, "geteuid", lambda: user)
    machine.paths |= {"apt-get": "/usr/bin/apt-get"} if apt else {}
    machine.effects |= {"playwright install": None}
    assert browser.main([]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert reason in said.err
    assert "the tests that open a page will be skipped" in said.err


def test_what_a_failing_command_said_is_the_reason():
    assert browser._tried([["sh", "-c", "echo start; echo Error: getaddrinfo; echo end; exit 1"]], 10) == (
        "Error: getaddrinfo"
    )
    assert browser._tried([["sh", "-c", "exit 3"]], 10) == "it failed"
    assert browser._tried([["true"], ["sh", "-c", "sleep 9"]], 1) == "no answer in 1 s"
    assert not browser._runs("/nowhere/chromium")
    assert not browser._runs("/bin/false")


@pytest.mark.parametrize(("ci", "ends"), [("true", "Failed"), ("", "Skipped")])
def test_without_a_browser_a_test_is_skipped_and_in_ci_it_fails(monkeypatch, ci, ends, pytestconfig):
    monkeypatch.setattr(browser, "find", lambda: None)
    monkeypatch.setenv("CI", ci)
    conftest = next(
        plugin for name, plugin in pytestconfig.pluginmanager.list_name_plugin() if name.endswith("tests/conftest.py")
    )
    with pytest.raises(BaseException, match="no Chromium or Chrome runs here") as raised:
        next(conftest.browser.__wrapped__())
    assert type(raised.value).__name__ == ends
