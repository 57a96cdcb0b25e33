"""The report's page in a notebook: patterns, roles and every head's card, in a frame that fetches nothing.

The frame holds the whole page as text (`srcdoc`), so that it works offline, and where the notebook is opened again. It
is a sandbox of its own: its script can neither read nor change the notebook.

Cost: that of `headscope.report` for what is not given, and a cell's output as large as the file would be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headscope.errors import ArgumentError
from headscope.evidence.circuit.result import Circuit
from headscope.evidence.scan.result import Scan
from headscope.evidence.verify.result import Verification
from headscope.model.load import Source
from headscope.page.call import python_call
from headscope.page.html import framed, page_html
from headscope.page.report import report_document

HEIGHT = 760
"""Pixels of the frame."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PageView:
    """A report's page. A notebook shows it when it is the last value of a cell."""

    document: dict[str, Any]
    """`headscope.report/1`."""
    height: int
    """Pixels of the frame; it scrolls."""

    def _repr_html_(self) -> str:
        title = f"{self.document['model']['id']} - headscope"
        return framed(page_html(self.document, title=title), title=title, height=self.height)

    def __repr__(self) -> str:
        model = self.document["model"]
        return f"PageView({model['id']}: {model['n_layers']} layers of {model['n_heads']} heads)"


def view(
    model: Source,
    *,
    scan: Scan | None = None,
    verification: Verification | None = None,
    circuit: Circuit | None = None,
    results: Sequence[Any] = (),
    n_prompts: int | None = None,
    period: int | None = None,
    seed: int = 0,
    height: int = HEIGHT,
) -> PageView:
    """Look at every head in a notebook: the report's page in a frame, interactive and offline.

    Args:
        model: What `headscope.load` takes, or gives.
        scan: What `hs.scan` gave for this model; measured by default, like the next two.
        verification: What `hs.verify` gave.
        circuit: What `hs.trace_circuit` gave.
        results: Results of further kinds, like an atlas.
        n_prompts: Random prompts of each of the three that is measured here; by default 32, and 128 in the circuit.
        period: Length of their repeated run; by default 50, and 24 in the circuit, or what fits.
        seed: Of all probes.
        height: Pixels of the frame, at least 200.

    Raises:
        ArgumentError: a height below 200; else as `headscope.report`.
    """
    if height < 200:
        raise ArgumentError(f"height={height}; a frame needs at least 200 pixels. Leave it out for {HEIGHT}.")
    asked: dict[str, Any] = {
        "scan": scan,
        "verification": verification,
        "circuit": circuit,
        "results": results,
        "n_prompts": n_prompts,
        "period": period,
        "seed": seed,
    }
    document = report_document(model, **asked, command=python_call("view", model, **asked))
    return PageView(document=document, height=height)
