"""The course: every notebook runs, shows what its file shows, and becomes a page that fetches nothing.

A notebook's own asserts hold what its prose claims. Here fresh outputs are held against those in the file: equal words,
numbers within 0.02 or 5%; not so where a model is trained, which another processor may train to another end. After a
change: `python -m scripts.course`, and read the difference.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import nbformat
import pytest

from headscope.render.pattern import bundled_script
from scripts import course, pages

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "course").glob("*.ipynb"))


@pytest.fixture(scope="session")
def kernel():
    """One for all notebooks that this process runs."""
    with course.kernel() as manager:
        yield manager


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_its_file_shows(path, kernel):
    assert course.checked(path, kernel) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_is_small_and_says_nothing_of_the_machine_that_made_it(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 200_000
    for cell in course.code_cells(notebook):
        assert cell.execution_count is None
        assert len(cell.outputs) <= 2
        assert all(len(one.get("data", {})) <= 1 for one in cell.outputs), "the richest form alone"
        assert str(ROOT) not in str(cell.outputs)
    assert any(course.texts(cell) for cell in course.code_cells(notebook)), "run `python -m scripts.course`"


def test_every_notebook_is_in_the_navigation_and_in_the_overview():
    names = {path.with_suffix(".md").name for path in NOTEBOOKS}
    assert set(re.findall(r"course/(\d-[\w-]+\.md)", (ROOT / "mkdocs.yml").read_text())) == names
    assert set(re.findall(r"\((\d-[\w-]+\.md)\)", (ROOT / "docs/course/index.md").read_text())) == names


@pytest.fixture
def notebook():
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [nbformat.v4.new_output("display_data", data={"text/markdown": "**0.91** of 1,234 in L1H1"})]
    return nbformat.v4.new_notebook(cells=[cell])


@pytest.mark.parametrize(
    ("shown", "same"),
    [
        ("**0.92** of 1,234 in L1H1", True),
        ("**0.97** of 1,234 in L1H1", False),
        ("**0.91** of 1,500 in L1H1", False),
        ("**0.91** of 1,234 in L1H2", False),
        ("**0.91** of 1,234 at L1H1", False),
    ],
)
def test_another_number_or_word_is_a_difference_and_rounding_is_not(notebook, shown, same):
    fresh = copy.deepcopy(notebook)
    fresh.cells[0].outputs[0].data["text/markdown"] = shown
    assert bool(course.compare(notebook, fresh)) is not same
    if same:
        assert fresh.cells[0].outputs == notebook.cells[0].outputs, "put back, so that no difference is committed"


def test_a_page_holds_prose_code_and_escaped_output(tmp_path):
    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell("1 < 2"),
        nbformat.v4.new_markdown_cell("prose"),
    ]
    cells[1].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="<b>"),
        nbformat.v4.new_output("display_data", data={"image/svg+xml": "<svg><style>*{}</style></svg>"}),
        nbformat.v4.new_output("display_data", data={"text/html": f"<script>{pages.SCRIPT}</script>"}),
        nbformat.v4.new_output("display_data", data={"text/markdown": "**said**"}),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "n.ipynb")
    markdown, (stream, figure, view) = pages.page(tmp_path / "n.ipynb")
    assert markdown.startswith("# Title\n\n[This page as a notebook](n.ipynb)")
    assert "```python\n1 < 2\n```" in markdown
    assert "\n\n**said**\n\nprose\n" in markdown
    assert "&lt;b&gt;" in stream
    assert "<style" not in figure, "a figure's style would reach the whole page"
    assert bundled_script() in view
    assert view.lower().count("</script") == 1
