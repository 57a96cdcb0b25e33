"""Run the course's notebooks, and keep what they show.

    python -m scripts.course            run them all, write their outputs into the files
    python -m scripts.course 3 7        these alone
    python -m scripts.course --check    change nothing; fail where a cell fails or shows something else than its file

Notebooks that train a model are checked by their own asserts alone.

Outputs are committed, so that building the docs runs nothing and a reader sees results without running anything. Each
cell keeps the richest form of what it shows. Differences are kept small: an output that says the same as before, to
rounding, stays as it was, pictures are text (SVG), counters are left out, and of CircuitsVis's view all is kept but its
script, which `scripts.pages` adds again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from scripts.pages import SCRIPT

ROOT = Path(__file__).parents[1]
COURSE = ROOT / "docs" / "course"
TIMEOUT_S = 300
RICHEST = ("text/html", "image/svg+xml", "text/markdown", "text/plain")
_BUNDLE = re.compile(r"(\?\?= \(\(\) => \{\n).*?(\nreturn CircuitsVis; \}\))", re.DOTALL)
_NUMBER = re.compile(r"-?\d+(?:[\d,]*\d)?(?:\.\d+)?(?:e[-+]\d+)?")
_SETTINGS = {
    "ipython/profile_default/ipython_kernel_config.py": (
        'c.InlineBackend.figure_formats = {"svg"}\nc.Application.log_level = "ERROR"\n'
    ),
    "matplotlib/matplotlibrc": "svg.fonttype: none\nsvg.hashsalt: headscope\nfont.size: 9\nlegend.frameon: False\n",
}


@contextmanager
def kernel() -> Generator[KernelManager, None, None]:
    """One kernel for all notebooks: each begins with no names, but what is imported need not be read again."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in _SETTINGS.items():
            file = Path(folder) / name
            file.parent.mkdir(parents=True)
            file.write_text(text)
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(
            cwd=folder,
            env=os.environ
            | {
                "IPYTHONDIR": f"{folder}/ipython",
                "MPLCONFIGDIR": f"{folder}/matplotlib",
                "SOURCE_DATE_EPOCH": "0",  # matplotlib's date
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "OMP_NUM_THREADS": "1",  # one order of adding, whatever the machine
            },
        )
        try:
            yield manager
        finally:
            manager.shutdown_kernel(now=True)


def executed(path: Path, manager: KernelManager) -> Any:
    """The notebook with fresh outputs; a cell that fails raises."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f"))
    client = NotebookClient(notebook, km=manager, timeout=TIMEOUT_S)
    try:
        client.execute()
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
    del notebook.cells[0]
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)
        cell.execution_count = None
        cell.outputs = [kept for kept in map(_kept, cell.outputs) if kept is not None]
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def checked(path: Path, manager: KernelManager) -> list[str]:
    """What a fresh run shows otherwise than its file, one line a cell; nothing of a notebook that trains a model."""
    fresh = executed(path, manager)
    return [] if _trains(fresh) else compare(nbformat.read(path, as_version=4), fresh)


def code_cells(notebook: Any) -> list[Any]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _kept(output: Any) -> Any | None:
    """One output as it goes into the file, or None; progress bars and warnings do not."""
    if output.output_type == "stream":
        if output.name == "stderr":
            return None
        return nbformat.v4.new_output("stream", name=output.name, text=output.text)
    kind = next(kind for kind in RICHEST if kind in output.data)
    text = str(output.data[kind])
    if kind == "text/html":
        text = _BUNDLE.sub(rf"\g<1>{SCRIPT}\g<2>", text)
        text = re.sub(r"<style.*?</style>\n?", "", text, flags=re.DOTALL)
        text = re.sub(r"<(table|thead|tbody|tr|th|td)\b([^>]*)>", _plain, text)
    if kind == "image/svg+xml":
        text = text[text.index("<svg") :]
    return nbformat.v4.new_output("display_data", data={kind: text})


def _plain(tag: re.Match[str]) -> str:
    """A table's tag without what pandas adds; the page's theme does the looks."""
    spans = "".join(re.findall(r' (?:col|row)span="[0-9]+"', tag[2]))
    return f"<{tag[1]}{spans}>"


def texts(cell: Any) -> list[tuple[str, str]]:
    """(kind, text) of each output of a cell."""
    return [
        ("stream", one.text) if one.output_type == "stream" else next(iter(one.data.items())) for one in cell.outputs
    ]


def same(old: list[tuple[str, str]], new: list[tuple[str, str]], *, pictures: bool) -> bool:
    """Whether two cells' outputs say the same: equal words, and numbers within 0.02 or 5%.

    Without `pictures`, of a picture no more is asked than that it is there.
    """
    if [kind for kind, _ in old] != [kind for kind, _ in new]:
        return False
    for (kind, a), (_, b) in zip(old, new, strict=True):
        if kind == "image/svg+xml" or "<svg" in a or SCRIPT in a:
            if not pictures:
                continue
            if re.sub(r"headscope-\w{12}", "", a) == re.sub(r"headscope-\w{12}", "", b):
                continue
        if [one.split() for one in _NUMBER.split(a)] != [one.split() for one in _NUMBER.split(b)]:
            return False
        pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
        values = [(float(x.replace(",", "")), float(y.replace(",", ""))) for x, y in pairs]
        if any(abs(x - y) > max(0.02, 0.05 * abs(x)) for x, y in values):
            return False
    return True


def compare(old: Any, new: Any) -> list[str]:
    """What a fresh run shows differently, one line a cell; outputs that say the same are restored."""
    changed = []
    for number, (before, after) in enumerate(zip(code_cells(old), code_cells(new), strict=True), start=1):
        if not same(texts(before), texts(after), pictures=False):
            changed.append(f"code cell {number} shows {_short(after)}, its file {_short(before)}")
        if same(texts(before), texts(after), pictures=True):
            after.outputs = before.outputs
    return changed


def _short(cell: Any) -> str:
    return " | ".join(" ".join(text.split())[:400] for _, text in texts(cell)) or "nothing"


def _trains(notebook: Any) -> bool:
    """Whether it trains a model: another processor rounds otherwise, and its own asserts alone hold everywhere."""
    return any("headscope.training.loop import" in cell.source for cell in code_cells(notebook))


def main(arguments: list[str] | None = None) -> int:
    """Run, then write or compare."""
    parser = argparse.ArgumentParser(prog="python -m scripts.course", description="Run the course's notebooks.")
    parser.add_argument("numbers", nargs="*", help="of the notebooks, like 3; by default all")
    parser.add_argument("--check", action="store_true", help="write nothing; fail on a difference")
    given = parser.parse_args(arguments)
    failed = False
    with kernel() as manager:
        for path in sorted(COURSE.glob("*.ipynb")):
            if given.numbers and path.name.split("-")[0] not in given.numbers:
                continue
            started = time.perf_counter()
            if given.check:
                changed = checked(path, manager)
                failed |= bool(changed)
                print("".join(f"{path.name}: {line}\n" for line in changed), end="")
            else:
                fresh = executed(path, manager)
                compare(nbformat.read(path, as_version=4), fresh)
                nbformat.write(fresh, path)
            print(
                f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1e3:.0f} kB",
                file=sys.stderr,
            )
    if failed:
        print("Write what they show now with `python -m scripts.course`, and read the difference.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
