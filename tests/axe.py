"""axe-core's rules of accessibility, run in an open page."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

AXE = Path(__file__).parents[1] / "web" / "node_modules" / "axe-core" / "axe.min.js"
CONTRAST = "color-contrast"
NAMES = {"label-content-name-mismatch": {"enabled": True}}


def violations(page, within="html", *, contrast=True):
    """What breaks a rule in the open page, or in a part of it; without the rule of contrast in a sixth of the time."""
    if not AXE.is_file():
        if os.environ.get("CI") == "true":
            pytest.fail("axe-core is not installed: run `make web/node_modules/.made`")
        pytest.skip("axe-core is not installed: run `make web/node_modules/.made`")
    page.evaluate(AXE.read_text() + ";0")
    options = {"rules": {**NAMES, CONTRAST: {"enabled": contrast}}}
    found = page.evaluate("([within, options]) => axe.run(within, options)", [within, options])
    assert len(found["passes"]) > 20, "the rules ran"
    assert (CONTRAST in {one["id"] for one in found["passes"]}) == contrast
    return [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found["violations"]]
