"""The built documentation, opened from a folder: its search finds pages, and nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = ["how-to/cite.md", "how-to/training-log.md", "how-to/compare.md", "glossary.md"]
COURSE = ["course/1-induction.ipynb", "course/3-circuit.ipynb"]
"""With CircuitsVis's view, tables and wide pictures."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A few pages, built with the documentation's own theme and search."""
    folder = tmp_path_factory.mktemp("site")
    ours = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    kept = {key: ours[key] for key in ("site_name", "use_directory_urls", "theme", "extra", "extra_css")}
    kept["hooks"] = [str(ROOT / one) for one in ours["hooks"]]
    plugins = [one for one in ours["plugins"] if one in ("search", "offline")]
    assert plugins == ["search", "offline"]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(kept | {"plugins": plugins, "docs_dir": "docs"}))
    for page in [*PAGES, *COURSE, *ours["extra"]["polyfills"], *ours["extra_css"]]:
        (folder / "docs" / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "docs" / page, folder / "docs" / page)
    (folder / "docs" / "index.md").write_text("# Here\n")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder / "site"],
        cwd=folder,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    return folder / "site"


def test_search_works_in_a_folder_opened_from_disk(site, browser):
    context = browser.new_context(offline=True)
    page = context.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto((site / "index.html").as_uri())
    for word, wanted in [("cite", "cite.html"), ("compare", "compare.html"), ("wandb", "training-log.html")]:
        box = page.get_by_role("textbox", name="Search")
        box.fill("")
        box.press_sequentially(word)
        page.locator(f".md-search-result__link[href*='{wanted}']").first.wait_for()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    context.close()


@pytest.mark.parametrize("width", [1280, 390])
def test_what_the_course_shows_is_no_wider_than_its_column(site, browser, width):
    page = browser.new_context(offline=True, viewport={"width": width, "height": 900}).new_page()
    for notebook in COURSE:
        page.goto((site / notebook).with_suffix(".html").as_uri())
        if "induction" in notebook:
            page.wait_for_selector("[id^=headscope-] canvas")  # CircuitsVis has drawn
        column = page.locator("article").bounding_box()
        outputs = page.locator(".course-output").all()
        assert len(outputs) > 2
        for one in outputs:
            box = one.bounding_box()
            assert column["x"] - 16 <= box["x"], "tables reach into the margin that the theme gives them"
            assert box["x"] + box["width"] <= column["x"] + column["width"] + 16
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()
