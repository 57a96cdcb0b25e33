"""What a snapshot costs against a step of training, on random weights of GPT-2-small's shape.

    python -m benchmarks.callback --json

A step is forward, backward and AdamW on one batch; a snapshot is what `HeadscopeCallback` takes by default.
Both are timed in turns, and counted: floating-point operations of all matrix products, by torch's own counter.
`ratio` is the median of snapshot over step in the same round, `flop_ratio` that of the counts, for the batch that was
timed; `flop_ratio_usual` is for 8 rows of 1,024 tokens, GPT-2's context.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scan import gpt2_small
from benchmarks.timing import interleaved, medians, ratio
from headscope.evidence.emergence.tracker import Tracker

USUAL = 8 * 1024
"""Tokens of a usual batch."""


def step_of(model: transformers.GPT2LMHeadModel, rows: int, length: int, *, bf16: bool) -> Callable[[], Any]:
    """One step of training on random tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    device = model.device
    ids = torch.randint(50_000, (rows, length), device=device)

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss: Any = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        _wait(device)

    return run


def snapshot_of(tracker: Tracker) -> Callable[[], Any]:
    """One snapshot with the default probe."""

    def run() -> None:
        tracker.measure(step=0)
        _wait(tracker.model.device)

    return run


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops(run: Callable[[], Any]) -> int:
    """Of all matrix products and attentions that `run` computes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def measured(*, rows: int, length: int, rounds: int, device: str, bf16: bool) -> dict[str, Any]:
    """Snapshot against step."""
    model = gpt2_small(1024).to(device).train()  # pyright: ignore[reportArgumentType]
    tracker = Tracker(model)
    step, snapshot = step_of(model, rows, length, bf16=bf16), snapshot_of(tracker)
    runs = {"step": step, "snapshot": snapshot}
    seconds = interleaved(runs, rounds=rounds)
    counts = {name: flops(run) for name, run in runs.items()}
    return {
        "schema": "headscope.benchmark.callback/1",
        "batch": [rows, length],
        "bf16": bf16,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "probe": dict(tracker.probe.settings),
        "probe_tokens": tracker.probe.n_tokens + sum(map(len, tracker.probe.prompts)),
        "median_s": medians(seconds),
        "ratio": round(ratio(seconds, "snapshot", "step"), 3),
        "gflop": {name: round(count / 1e9, 1) for name, count in counts.items()},
        "flop_ratio": round(counts["snapshot"] / counts["step"], 3),
        "flop_ratio_usual": round(counts["snapshot"] / counts["step"] * rows * length / USUAL, 3),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bf16", action="store_true", help="train under autocast")
    options = parser.parse_args()
    found = measured(
        rows=options.rows, length=options.length, rounds=options.rounds, device=options.device, bf16=options.bf16
    )
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"a snapshot takes {found['ratio']:.2f} of a training step on {options.rows} x {options.length} tokens, by "
        f"counting {found['flop_ratio']:.2f}; of one on 8 x 1,024 tokens, by counting {found['flop_ratio_usual']:.2f}"
    )


if __name__ == "__main__":
    main()
