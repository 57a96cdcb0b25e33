"""One layer against two: the same recipe, and what comes of it.

    python -m benchmarks.one_layer --json
    python -m benchmarks.one_layer --write docs/generated/one_layer.md

Trains the recipe `copy` twice with the same seed, with one layer and with two, on one thread. Both are measured on the
default probe of `hs.scan`: the loss on the second copy, the strongest induction score and the strongest previous-token
score of any head. Two layers stop early by the recipe's own rule; one layer takes all of its steps. By chance the loss
is log 255 = 5.54 nats.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import headscope as hs
from headscope.records.files import write_whole
from headscope.training.run import Row

EVERY = 50


def curve(layers: int, *, seed: int, folder: Path) -> list[dict[str, Any]]:
    """One row every 50 steps."""
    trained = hs.train("copy", layers=layers, seed=seed, out=folder, device="cpu")
    return [_figures(row) for row in trained.curve if row.step % EVERY == 0 or row == trained.final]


def _figures(row: Row) -> dict[str, Any]:
    figures = row.figures
    return {
        "step": row.step,
        "second_copy_loss_nats": round(figures.second_copy_loss_nats, 3),
        "induction": round(figures.induction.score, 3),
        "previous_token": round(figures.previous_token.score, 3),
    }


def page(found: dict[str, Any]) -> str:
    """The table as Markdown."""
    two_layers = {row["step"]: row for row in found["two_layers"]}
    lines = [
        "<!-- written by `python -m benchmarks.one_layer --write docs/generated/one_layer.md` -->",
        "",
        "| step | one layer: second copy, nats | stripe | previous token "
        "| two layers: second copy, nats | stripe | previous token |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found["one_layer"]:
        two = two_layers.get(one["step"])
        lines.append(f"| {one['step']} | {_cells(one)} | {'done | | ' if two is None else _cells(two)} |")
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> str:
    return f"{row['second_copy_loss_nats']:.2f} | {row['induction']:.2f} | {row['previous_token']:.2f}"


def main() -> None:
    """Train both, print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", type=Path, help="write the table, as Markdown, to this file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"schema": "headscope.benchmark.one_layer/2", "seed": options.seed}
    with tempfile.TemporaryDirectory() as scratch:
        for name, layers in (("one_layer", 1), ("two_layers", 2)):
            found[name] = curve(layers, seed=options.seed, folder=Path(scratch) / name)
    if options.write is not None:
        write_whole(options.write, page(found).encode())
    print(json.dumps(found, indent=1) if options.json else page(found), end="")


if __name__ == "__main__":
    main()
