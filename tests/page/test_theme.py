"""One palette: the page's copy of it says what `render.theme` says, and nothing else in the package names a colour."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from headscope.render.theme import DARK, LIGHT, Theme, shade

ROOT = Path(__file__).parents[2]
WEB = ROOT / "web/src"
COLOUR = re.compile(r"#[0-9a-f]{6}\b", re.IGNORECASE)
MEANINGS = {"evidence/head_types.py"} | {
    path.relative_to(ROOT / "src/headscope").as_posix()
    for path in (ROOT / "src/headscope/evidence/atlas/roles").glob("*.py")
}
"""Files whose records carry the colour of a verdict or of a role."""


def of_script(name: str) -> dict[str, str]:
    """The colours of one ground in colours.ts, numbers as #rrggbb."""
    body = re.search(rf"const {name}: Theme = \{{(.*?)\n\}};", (WEB / "colours.ts").read_text(), re.DOTALL)
    assert body
    found = {}
    for key, value in re.findall(r"^  (\w+): (.*),$", body[1], re.MULTILINE):
        if key != "dark":
            given = json.loads(value)
            found[key] = given if isinstance(given, str) else "#" + "".join(f"{part:02x}" for part in given)
    return found


def of_styles(block: str) -> dict[str, str]:
    """The colours of one ground in styles.css."""
    return dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))


@pytest.mark.parametrize(("name", "theme"), [("LIGHT", LIGHT), ("DARK", DARK)])
def test_the_page_draws_in_our_colours(name, theme):
    drawn = of_script(name)
    assert drawn == {key: getattr(theme, key) for key in drawn}
    assert len(drawn) >= 12


@pytest.mark.parametrize(("place", "theme"), [(0, LIGHT), (1, DARK)])
def test_the_page_is_styled_in_our_colours(place: int, theme: Theme):
    text = (WEB / "styles.css").read_text()
    styled = of_styles(re.findall(r":root \{(.*?)\}", text, re.DOTALL)[place])
    ours = {"ink": theme.ink, "soft": theme.soft, "line": theme.line, "paper": theme.paper, "mark": theme.mark}
    assert styled == {**styled, **ours, "accent": theme.clean}


def test_runs_have_our_colours_on_the_page():
    text = (WEB / "emergence.tsx").read_text()
    for key, theme in (("light", LIGHT), ("dark", DARK)):
        found = re.search(rf"{key}: (\[.*\]),", text)
        assert found
        assert tuple(json.loads(found[1])) == theme.runs


def test_no_other_file_names_a_colour():
    named = {
        path.relative_to(ROOT / "src/headscope").as_posix()
        for path in (ROOT / "src/headscope").rglob("*.py")
        if re.search(r"[\"':]#[0-9a-f]{6}[\"' ]", path.read_text(), re.IGNORECASE)
    }
    assert named == MEANINGS - {"evidence/atlas/roles/__init__.py"} | {"render/theme.py"}
    assert all(COLOUR.fullmatch(colour) for theme in (LIGHT, DARK) for colour in _flat(theme))


def _flat(theme: Theme) -> list[str]:
    return [part for value in asdict(theme).values() for part in ([value] if isinstance(value, str) else value)]


def test_a_shade_runs_from_low_to_high():
    assert shade(-1.0) == shade(0.0) == LIGHT.low
    assert shade(2.0) == shade(1.0) == LIGHT.high
    # low #eff3f9, high #08306b: (239 + 8) / 2 = 123.5, (243 + 48) / 2 = 145.5, (249 + 107) / 2 = 178; half to even
    assert shade(0.5) == f"#{124:02x}{146:02x}{178:02x}"
