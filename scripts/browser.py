"""Find a Chromium that runs, or install one; the tests open pages in it.

    python -m scripts.browser

In this order: a Chromium or Chrome that is installed; the build that playwright has downloaded; playwright's download,
where the network allows it; `apt-get install chromium`, as root on Debian. Each is started once (`--version`) before it
counts. Without any, says why on stderr and exits 0: the tests that need a browser are then skipped, and say so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MACOS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
DOWNLOAD_S, PACKAGES_S = 300, 600
NONE = "no Chromium or Chrome runs here; `python -m scripts.browser` installs one or says why it cannot"


def find() -> str | None:
    """Path of a Chromium or Chrome that starts, or None. Installs nothing."""
    named = [path for path in map(shutil.which, NAMES) if path is not None]
    return next((path for path in (*named, *MACOS) if _runs(path)), None) or _downloaded()


def install() -> str | None:
    """The same, after trying each way to install one until one works; what failed is said on stderr."""
    for what, attempt in (("playwright's download", _download), ("apt-get", _packages)):
        if (path := find()) is not None:
            return path
        if (reason := attempt()) is not None:
            print(f"browser: {what}: {reason}", file=sys.stderr)
    return find()


def _runs(path: str) -> bool:
    """Whether it starts: a library may be missing, and Ubuntu's package is a stub that names another."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _downloaded() -> str | None:
    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if _runs(path) else None


def _download() -> str | None:
    """None once done, else the reason."""
    return _tried([[sys.executable, "-m", "playwright", "install", "--no-shell", "chromium"]], DOWNLOAD_S)


def _packages() -> str | None:
    if shutil.which("apt-get") is None:
        return "not on this system"
    if os.geteuid() != 0:
        return "only root may install packages; run `sudo apt-get install chromium`"
    quiet = ["--quiet", "--quiet"]
    update = ["apt-get", *quiet, "update"]
    return _tried([update, ["apt-get", *quiet, "--yes", "--no-install-recommends", "install", "chromium"]], PACKAGES_S)


def _tried(commands: list[list[str]], seconds: int) -> str | None:
    """Runs them in turn; None, or the last line of the first that fails."""
    for command in commands:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=seconds,
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {seconds} s"
        if done.returncode != 0:
            said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            return next((line for line in said if "rror" in line), said[-1] if said else "it failed")[:200]
    return None


def main(arguments: list[str] | None = None, *, install: Callable[[], str | None] = install) -> int:
    """Print the path, or on stderr that there is none."""
    argparse.ArgumentParser(
        prog="python -m scripts.browser", description="Find a Chromium, or install one."
    ).parse_args(arguments)
    path = install()
    if path is None:
        print(f"browser: {NONE.partition(';')[0]}: the tests that open a page will be skipped.", file=sys.stderr)
    else:
        print(f"browser: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
