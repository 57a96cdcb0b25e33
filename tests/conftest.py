"""What holds for every test: shapes and types are checked, nothing is fetched, the same seed, one thread."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jaxtyping

# Before any test imports headscope: from here on each of its functions and dataclasses checks what its signature says.
# A wrong shape therefore raises jaxtyping.TypeCheckError before the function's own ShapeError can.
jaxtyping.install_import_hook("headscope", "beartype.beartype")

import numpy as np
import pytest
import torch
from hypothesis import settings

# Results may depend on the number of threads in the last digit. One, on any machine, since workers share its cores.
torch.set_num_threads(1)
settings.register_profile("headscope", deadline=None, derandomize=True)
settings.load_profile("headscope")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Each test starts from the same global seeds, in whatever order they run."""
    torch.manual_seed(0)


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

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.fail("there is no Chromium to open pages in; install it: apt-get install chromium")
    with sync_playwright() as playwright:
        # No sandbox: tests may run as root, and the pages are ours. No name resolves, so that nothing leaves.
        options = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        started = playwright.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()
