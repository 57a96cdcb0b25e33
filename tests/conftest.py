"""What holds for every test: shapes and types are checked, nothing is fetched, the same seed, one thread."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from typing import Any

# While imports make a million lasting objects, looking for garbage among them finds none and takes seconds.
gc.disable()
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tests.typed

# A wrong shape therefore raises jaxtyping.TypeCheckError before the function's own ShapeError can.
tests.typed.install()

import numpy as np
import pytest
import torch
from hypothesis import settings

from scripts import browser as chromium

# One, on any machine, since workers share its cores; `make portability` asks for others.
torch.set_num_threads(int(os.environ.get("HEADSCOPE_TEST_THREADS", "1")))
settings.register_profile("headscope", deadline=None, derandomize=True)
settings.load_profile("headscope")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same global seeds, in whatever order they run; and each has its signatures checked."""
    torch.manual_seed(0)
    tests.typed.begin()


@pytest.fixture
def rng() -> np.random.Generator:
    """A seeded generator for the test's own draws."""
    return np.random.default_rng(0)


@pytest.fixture
def generator() -> torch.Generator:
    """The same, for tensors."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, which can reach this machine alone. One for all tests: Playwright runs once in a process."""
    from playwright.sync_api import sync_playwright

    path = chromium.find()
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(chromium.NONE)
        pytest.skip(chromium.NONE)
    with sync_playwright() as playwright:
        # No sandbox: tests may run as root, and the pages are ours. No name resolves, so that nothing leaves.
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        started = playwright.chromium.launch(executable_path=path, args=options)
        yield started
        started.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what opens a page, so that `-m "not browser"` leaves it out."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


def pytest_collection_finish() -> None:
    """Collect garbage again, but not among what is imported."""
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say at the end what a machine without a browser did not test."""
    skipped = sum(chromium.NONE in str(one.longrepr) for one in terminalreporter.stats.get("skipped", []))
    if skipped:
        terminalreporter.write_line(f"{skipped} tests that open a page were skipped: {chromium.NONE}", yellow=True)
