"""A hook of MkDocs: each notebook of the course becomes a page.

Markdown cells are Markdown, code cells are code, outputs follow them as they were kept (`scripts.course`).
Nothing is run and nothing is fetched, so a page costs milliseconds, follows the site's theme, and works from a folder.
The notebook itself is beside its page.
"""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from headscope.render.pattern import bundled_script

SCRIPT = "/* the script that CircuitsVis bundles */"
"""What a notebook's file has in place of that script."""

_BLOCKS: dict[str, list[str]] = {}
"""By page, what is put into it at the very end, so that neither Markdown nor the search index sees it."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page for each notebook."""
    for file in [one for one in files if one.src_uri.endswith(".ipynb")]:
        uri = file.src_uri.removesuffix(".ipynb") + ".md"
        assert file.abs_src_path is not None
        markdown, _BLOCKS[uri] = page(Path(file.abs_src_path))
        files.append(File.generated(config, uri, content=markdown))
    return files


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Put outputs in their places."""
    for number, block in enumerate(_BLOCKS.get(page.file.src_uri, [])):
        assert output.count(_place(number)) == 1, f"{page.file.src_uri} lost its output {number}"
        output = output.replace(_place(number), block)
    return output


def page(path: Path) -> tuple[str, list[str]]:
    """A notebook as Markdown, and the outputs that belong into its places."""
    parts: list[str] = []
    blocks: list[str] = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            if len(parts) == 1:
                parts.append(f"[This page as a notebook]({path.name}){{ download }}")
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            kind, text = ("stream", output["text"]) if "text" in output else next(iter(output["data"].items()))
            text = "".join(text)
            if kind == "text/markdown":
                parts.append(text)
            else:
                parts.append(_place(len(blocks)))
                blocks.append(_block(kind, text))
    return "\n\n".join(parts) + "\n", blocks


def _place(number: int) -> str:
    return f'<div id="course-output-{number}"></div>'


def _block(kind: str, text: str) -> str:
    if kind == "image/svg+xml":
        if "<style" in text:  # matplotlib's would reach the whole page
            data = base64.b64encode(text.encode()).decode()
            text = f'<img src="data:image/svg+xml;base64,{data}" alt="figure">'
        return f'<div class="course-output">{text}</div>'
    if kind == "text/html" and SCRIPT in text:  # a view that a script draws: as wide as there is room, not as its own
        return f'<div class="course-output">{text.replace(SCRIPT, bundled_script())}</div>'
    if kind == "text/html":
        return f'<div class="course-output md-typeset__scrollwrap"><div class="md-typeset__table">{text}</div></div>'
    return f'<pre class="course-output"><code>{escape(text)}</code></pre>'
