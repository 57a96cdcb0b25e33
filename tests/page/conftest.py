"""A report of the packaged model, made once, and pages opened from it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

import headscope as hs
from headscope.evidence.circuit.result import Circuit
from headscope.evidence.scan.result import Scan
from headscope.evidence.verify.result import Verification
from headscope.model.scope import LOCK
from headscope.page.report import report_document, write_page
from tests.window import Window


@dataclass(frozen=True)
class Results:
    model: Any
    scan: Scan
    verification: Verification
    circuit: Circuit
    steps: dict[str, bool]
    """By what was being done: whether the model was ever locked when progress was told."""


@pytest.fixture(scope="session")
def results() -> Results:
    model = hs.load("demo")
    steps: dict[str, bool] = {}

    def told(what: str, done: int, total: int) -> None:
        steps[what] = steps.get(what, False) or LOCK._is_owned()  # pyright: ignore[reportAttributeAccessIssue]

    scan = hs.scan(model, progress=lambda done, total: told("scanning", done, total))
    probe = hs.repeated_tokens(model, n_prompts=8, period=24)
    verification = hs.verify(model, probe=probe, progress=told)
    circuit = hs.trace_circuit(model, verification=verification, probe=probe, progress=told)
    return Results(model, scan, verification, circuit, steps)


@pytest.fixture(scope="session")
def made(results: Results) -> dict[str, Any]:
    return report_document(results.model, scan=results.scan, verification=results.verification, circuit=results.circuit)


@pytest.fixture
def document(made: dict[str, Any]) -> dict[str, Any]:
    """A copy to change."""
    return copy.deepcopy(made)


@dataclass
class Opened:
    """A page, and what it did that it should not."""

    page: Page
    console: list[str]
    requests: list[str]

    def assert_quiet(self) -> None:
        assert self.console == []
        assert self.requests == []


@pytest.fixture(scope="session")
def offline(browser: Browser) -> Iterator[Window]:
    """A window that has no network."""
    opened = Window(browser, offline=True)
    yield opened
    opened.close()


@pytest.fixture
def window(offline: Window) -> Iterator[Window]:
    """The same, for one test."""
    yield offline
    offline.take_back()


@pytest.fixture
def show(window: Window, tmp_path: Path) -> Callable[..., Opened]:
    """Open a page with no network: a report's document, or a file: `show(document, width=820, dark=True)`."""

    def run(what: dict[str, Any] | Path, *, width: int = 1280, dark: bool = False, edit: Any = None) -> Opened:
        path = what if isinstance(what, Path) else write_page(what, tmp_path / "page.html")
        if edit is not None:
            path.write_text(edit(path.read_text()))
        console: list[str] = []
        requests: list[str] = []
        page = window.page(
            width=width,
            dark=dark,
            console=lambda one: console.append(one.text),
            pageerror=lambda one: console.append(str(one)),
            request=lambda one: requests.append(one.url) if one.url != path.as_uri() else None,
        )
        page.goto(path.as_uri())
        if what is path:
            page.wait_for_selector("main svg")
        else:
            page.wait_for_selector("#head-map svg")
            page.wait_for_selector("canvas.pattern")
            page.wait_for_selector("#made h2")  # the last part: they are drawn one after the other
        return Opened(page, console, requests)

    return run
