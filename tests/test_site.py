"""The built documentation, opened from a folder: its search finds pages, and nothing is fetched from elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = ["how-to/cite.md", "how-to/training-log.md", "how-to/compare.md", "glossary.md"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A few pages, built with the documentation's own theme and search."""
    folder = tmp_path_factory.mktemp("site")
    ours = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    kept = {key: ours[key] for key in ("site_name", "use_directory_urls", "theme", "extra")}
    plugins = [one for one in ours["plugins"] if one in ("search", "offline")]
    assert plugins == ["search", "offline"]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(kept | {"plugins": plugins, "docs_dir": "docs"}))
    for page in [*PAGES, *ours["extra"]["polyfills"]]:
        (folder / "docs" / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "docs" / page, folder / "docs" / page)
    (folder / "docs" / "index.md").write_text("# Here\n")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", folder / "site"], cwd=folder, check=True
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
