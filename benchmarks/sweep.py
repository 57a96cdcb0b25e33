"""Sweeping 24 small models on Ray: what a second worker is worth, and what the engine costs.

    python -m benchmarks.sweep [--json]

Random llamas of 6 layers of 8 heads, 192 wide, in folders; each job is a default scan, about a second on one thread.
One worker and two take turns, each round on a new Ray, with its workers warm: they have imported everything
and done a job each, as in a sweep of hours.

    speedup_2_workers   seconds of one worker over seconds of two, in the same round; the median over rounds
    engine_overhead     of one worker: seconds beyond those that its jobs took, as a share of those; the median

A job's seconds are what it measured itself: loading, check, scan, rows. Beyond them lie Ray's scheduling, the way of
the outcome to the driver, and the store's file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

import headscope as hs
from headscope.sweeps.engines import OBJECT_STORE_BYTES

BARS = {"engine_overhead": 0.05}
FLOORS = {"speedup_2_workers": 1.6}
N_MODELS = 24


def save_models(folder: Path, count: int) -> list[Path]:
    """Random models of one shape, each with other weights."""
    config = LlamaConfig(
        hidden_size=192, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=8,
        vocab_size=1024, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / f"model-{seed}")
        made.append(folder / f"model-{seed}")
    return made


def run(models: list[Path], folder: Path, workers: int) -> dict[str, float]:
    """Seconds of a sweep on a Ray with warm workers, and of its jobs by their own account."""
    import ray

    started = time.perf_counter()
    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False, logging_level=logging.ERROR,
    )  # fmt: skip
    try:
        warm_up = {"scan": {"seed": 1}}
        hs.sweep(models[: 4 * workers], folder / "warm", settings=warm_up, engine="ray")
        start_s = time.perf_counter() - started
        started = time.perf_counter()
        found = hs.sweep(models, folder / "store", engine="ray")
        wall_s = time.perf_counter() - started
    finally:
        ray.shutdown()
    assert found.done == len(models), found
    jobs = hs.open_store(folder / "store").to_arrow("jobs").to_pylist()
    return {"wall_s": wall_s, "jobs_s": sum(job["load_s"] + job["wall_s"] for job in jobs), "start_s": start_s}


def measure(*, rounds: int, n_models: int) -> dict[str, Any]:
    """Everything, as one JSON-ready document."""
    transformers.utils.logging.disable_progress_bar()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="headscope-") as place:
        models = save_models(Path(place) / "models", n_models)
        for turn in range(rounds):
            for workers in (1, 2) if turn % 2 == 0 else (2, 1):
                found[workers].append(run(models, Path(place) / f"{turn}-{workers}", workers))
    speedups = [one["wall_s"] / two["wall_s"] for one, two in zip(found[1], found[2], strict=True)]
    overheads = [one["wall_s"] / one["jobs_s"] - 1 for one in found[1]]
    return {
        "schema": "headscope.benchmark.sweep/1",
        "speedup_2_workers": round(statistics.median(speedups), 3),
        "engine_overhead": round(statistics.median(overheads), 4),
        "bars": BARS,
        "floors": FLOORS,
        "models": n_models,
        "rounds": rounds,
        "job_s": round(statistics.median(one["jobs_s"] for one in found[1]) / n_models, 3),
        "median_s": {
            f"{workers}_{name}": round(statistics.median(one[name] for one in runs), 3)
            for workers, runs in found.items()
            for name in ("wall_s", "jobs_s", "start_s")
        },
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    """Print the document, or the figures that carry a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=int, default=N_MODELS)
    options = parser.parse_args()
    found = measure(rounds=options.rounds, n_models=options.models)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    speedup, overhead = found["speedup_2_workers"], found["engine_overhead"]
    met = {True: "met", False: "MISSED"}
    print(f"speedup_2_workers  {speedup:.2f}   {met[speedup >= FLOORS['speedup_2_workers']]} (bar 1.60)")
    print(f"engine_overhead    {overhead:.1%}   {met[overhead <= BARS['engine_overhead']]} (bar 5%)")
    start = found["median_s"]["1_start_s"]
    print(f"{found['models']} models, {found['job_s']:.2f} s each; Ray and a first worker are there in {start:.0f} s")


if __name__ == "__main__":
    main()
