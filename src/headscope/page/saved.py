"""What commands saved in a folder, as a report takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headscope.errors import ArgumentError
from headscope.evidence.kinds import kind_of, saved_results

ONE_OF = {"scan": "scan", "verify": "verification", "circuit": "circuit"}
"""The argument of `headscope.report` by the kind that a report holds one of."""
SEVERAL = {"emergence": "emergence", "behavior": "behavior"}
"""The same, by the kinds that it may hold several of; all other kinds go to `results`."""


def ready(folder: str | Path) -> dict[str, Any]:
    """A folder's results as arguments of `headscope.report`, so that they need not be measured again.

    Raises:
        ArgumentError: there is no such folder, no result in it, two of a kind that a report holds one of, or a
            damaged document.
    """
    found: dict[str, Any] = {}
    for result in saved_results(folder):
        kind = kind_of(result)
        if kind.name in ONE_OF:
            if ONE_OF[kind.name] in found:
                raise ArgumentError(f"{str(folder)!r} holds two documents of {kind.name}; keep one of them.")
            found[ONE_OF[kind.name]] = result
        elif kind.name in SEVERAL or kind.section is not None:
            found.setdefault(SEVERAL.get(kind.name, "results"), []).append(result)
    if not found:
        raise ArgumentError(
            f"{str(folder)!r} holds no result that a report shows; name a folder in which --out wrote, "
            "like: headscope verify demo --out results/demo."
        )
    return found
