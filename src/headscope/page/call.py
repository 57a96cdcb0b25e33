"""The Python call that made a page, so that its reader can make it again.

    headscope.report('demo', 'report.html', seed=3, heads=['L1H5'])

What can be written down is: names, folders, numbers, heads, short texts. A model object, a ready result or a long text
has the name of its argument; what it was is in the page's other rows.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

from headscope.errors import ArgumentError
from headscope.heads import heads_in

LONGEST = 80
"""Characters of a value that is written out."""
TEXTS = ("heads", "natural")
"""Arguments whose value can be written down; those of the others are results."""


def python_call(function: str, *given: Any, **named: Any) -> str:
    """A call of `headscope.<function>`; what was left at None, empty or at seed 0 is left out.

    Args:
        function: Its name.
        given: The model, and what else has no name.
        named: By the names of its parameters.
    """
    first, *rest = given
    parts = [
        repr(str(first)) if isinstance(first, (str, Path)) else "model",
        *(repr(str(one)) for one in rest),
        *(f"{name}={_written(name, value)}" for name, value in named.items() if _is_asked(name, value)),
    ]
    return f"headscope.{function}({', '.join(parts)})"


def _is_asked(name: str, value: Any) -> bool:
    if value is None or (name == "seed" and value == 0):
        return False
    return len(cast("tuple[Any, ...]", value)) > 0 if isinstance(value, (tuple, list)) else True


def _written(name: str, value: Any) -> str:
    if isinstance(value, (int, float)):
        return repr(value)
    if name == "heads" and isinstance(value, Collection):  # what can be read once alone is left to the report
        try:
            value = [str(one) for one in heads_in(value)]
        except ArgumentError:
            return name
    text = repr(value)
    return text if isinstance(value, (str, list)) and name in TEXTS and len(text) <= LONGEST else name
