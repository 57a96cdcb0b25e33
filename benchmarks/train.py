"""How surely and how fast `headscope train --recipe copy` learns induction, seed by seed.

    python -m benchmarks.train --json
    python -m benchmarks.train --layers 1
    python -m benchmarks.train --seeds 3

For each seed: the step and the seconds at which the strongest stripe is at least 0.7 and the second-copy loss at most
0.2 nats, and stay so to the end of training; and the final figures, on the default probe of `hs.scan`. Seconds count
everything from the first step on: training, looking and writing checkpoints. With one layer, training takes all of the
recipe's steps, since it never gets there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import headscope as hs
from headscope.training.run import held_from


def one_seed(seed: int, *, layers: int, folder: Path) -> dict[str, Any]:
    """Train once."""
    trained = hs.train("copy", layers=layers, seed=seed, out=folder, device="cpu")
    until = trained.config.preset.until
    assert until is not None, "copy names two figures"
    reached = held_from(trained.curve, until)
    row = next((row for row in trained.curve if row.step == reached), None)
    best = hs.scan(folder / trained.checkpoints[-1]).ranked("induction")[0]
    return {
        "seed": seed,
        "reached_step": reached,
        "reached_wall_s": None if row is None else round(row.wall_s, 1),
        "steps": trained.final.step,
        "wall_s": round(trained.final.wall_s, 1),
        "stripe": round(best.mean, 3),
        "head": str(best.head),
        "previous_token": round(trained.final.figures.previous_token.score, 3),
        "second_copy_loss_nats": round(trained.final.figures.second_copy_loss_nats, 4),
    }


def table(found: dict[str, Any]) -> str:
    """The seeds as lines."""
    lines = ["seed  reached at step (s)   end at step (s)   stripe        previous token   second copy, nats"]
    for one in found["seeds"]:
        at = "never" if one["reached_step"] is None else f"{one['reached_step']} ({one['reached_wall_s']:.0f})"
        lines.append(
            f"{one['seed']:4d}  {at:19s}   {one['steps']} ({one['wall_s']:.0f})".ljust(47)
            + f"{one['head']} {one['stripe']:.3f}    {one['previous_token']:.3f}            "
            f"{one['second_copy_loss_nats']:.3f}"
        )
    return "\n".join([*lines, f"{found['reached']} of {len(found['seeds'])} reached both figures"])


def main() -> None:
    """Train the seeds one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0 up")
    parser.add_argument("--layers", type=int, default=2, help="1 for the control")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "schema": "headscope.benchmark.train/1",
        "layers": options.layers,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "seeds": [],
    }
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds):
            found["seeds"].append(one_seed(seed, layers=options.layers, folder=Path(scratch) / str(seed)))
            print(found["seeds"][-1], file=sys.stderr, flush=True)
    found["reached"] = sum(one["reached_step"] is not None for one in found["seeds"])
    found["reached_share"] = found["reached"] / max(1, options.seeds)
    found["floors"] = {"reached_share": 0.9} if options.layers > 1 else {}
    found["bars"] = {"slowest_wall_s": 150.0} if options.layers > 1 else {"reached_share": 0.0}
    found["slowest_wall_s"] = max((one["reached_wall_s"] or one["wall_s"] for one in found["seeds"]), default=0.0)
    print(json.dumps(found, indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
