"""The tables of docs/scaling.md: what a sweep costs, from unit costs that this script measures.

    python scripts/scaling.py --measure    measure the unit costs here, into docs/generated/scaling.json; takes minutes
    python scripts/scaling.py              the tables from that file, into docs/generated/scaling.md
    python scripts/scaling.py --check      fail if the tables are not those of the file

Unit costs are seconds of CPU time of one thread, so that other work on the machine matters little. The plans are a
simulation: jobs go to the next free worker, workers die at random and their job begins again, and one driver writes
each outcome into the store.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GENERATED = Path(__file__).parents[1] / "docs" / "generated"
UNITS, TABLES = GENERATED / "scaling.json", GENERATED / "scaling.md"

TOKENS = 16 * 2 * 149
"""Of a scan of 16 prompts and their controls, half of the default."""
ROLES = 6
DEATHS_PER_HOUR = 0.05
"""Of each worker in the simulation: spot machines, memory, hardware."""


PEAK = """
import sys, torch, headscope as hs
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
torch.set_num_threads(1)
hs.scan(hs.load("demo"))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins again
before = kilobytes("VmRSS")
hs.scan(hs.load(sys.argv[1]))
print((kilobytes("VmHWM") - before) * 1024)
"""
"""Bytes that loading and scanning a model add to a process that has imported everything; Linux only."""


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of a call."""
    gc.collect()
    started = time.process_time()
    run()
    return time.process_time() - started


def measure() -> dict[str, Any]:
    """The unit costs, by name."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    import headscope as hs
    from headscope.evidence.kinds import sweepable
    from headscope.sweeps.plan import Job
    from headscope.sweeps.run import Outcome
    from headscope.sweeps.store import Store

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    hs.scan(hs.load("demo"))  # imports
    with tempfile.TemporaryDirectory(prefix="headscope-") as place:
        folder = Path(place)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder / "model")
        weight_bytes = (folder / "model" / "model.safetensors").stat().st_size
        kept: list[Any] = []
        load_s = cpu_seconds(lambda: kept.append(hs.load(folder / "model")))
        model = kept[0]
        body = sum(one.numel() for name, one in model.hf.named_parameters() if ".h." in name)
        found: list[Any] = []
        scan_s = cpu_seconds(lambda: found.append(hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=16))))
        run = subprocess.run([sys.executable, "-c", PEAK, folder / "model"], capture_output=True, text=True, check=True)
        peak = int(run.stdout)
        how = sweepable()["scan"]
        rows = how.rows(found[0])

        store = Store(folder / "store", create=True)
        about = {"family": "gpt2", "n_parameters": 1, "n_layers": 12, "n_heads": 12, "support": "exact", "finished": ""}
        jobs = [
            Job(model=f"m{i}", revision="main", content="c", what="scan", settings=dict(how.settings), dtype="auto")
            for i in range(100)
        ]
        put_s = cpu_seconds(lambda: [store.put(Outcome(job=job, about=about, rows=rows)) for job in jobs])
        full = sum(path.stat().st_size for path in (folder / "store" / "scan").iterdir()) / len(jobs)
        bare = Store(folder / "bare", create=True)
        bare.put(Outcome(job=jobs[0], about=about, rows=[]))
        empty = next((folder / "bare" / "scan").iterdir()).stat().st_size
        tables: list[Any] = []
        read_s = cpu_seconds(lambda: tables.append(store.to_arrow("scan")))
    return {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "scan_flop_per_s": 2 * body * TOKENS / scan_s,
        "load_s_per_gb": load_s / (weight_bytes / 1e9),
        "peak_bytes_per_weight_byte": peak / weight_bytes,
        "file_bytes": empty,
        "row_bytes": (full - empty) / len(rows),
        "row_bytes_in_memory": tables[0].nbytes / tables[0].num_rows,
        "write_s_per_job": put_s / len(jobs),
        "read_s_per_job": read_s / len(jobs),
        "heads_per_model": 144,
        "scan_s_per_head": scan_s / 144,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a simulated sweep took."""

    wall_s: float
    deaths: int
    lost_s: float
    driver_busy: float


def simulate(jobs: list[float], *, workers: int, write_s: float, seed: int = 0) -> Outcome:
    """A sweep of jobs of these seconds.

    A worker that dies takes the time it has spent on its job with it; the job goes to the next free worker.
    """
    draw = random.Random(seed)
    waiting = list(reversed(jobs))
    free = [0.0] * workers
    deaths, lost, driver = 0, 0.0, 0.0
    while waiting:
        job, start = waiting.pop(), heapq.heappop(free)
        death = draw.expovariate(DEATHS_PER_HOUR / 3600)
        if death < job:
            deaths, lost = deaths + 1, lost + death
            waiting.append(job)
            heapq.heappush(free, start + death)
            continue
        heapq.heappush(free, start + job)
        driver = max(driver, start + job) + write_s
    wall = max(driver, *free)
    return Outcome(wall_s=wall, deaths=deaths, lost_s=lost, driver_busy=len(jobs) * write_s / wall)


@dataclass(frozen=True, slots=True)
class Shape:
    """A model, by what its scan costs."""

    name: str
    body: float
    total: float
    layers: int
    heads: int
    kv_heads: int
    d_head: int
    bytes_per_number: int


SHAPES = (
    Shape("GPT-2 small", 85e6, 124e6, 12, 12, 12, 64, 4),
    Shape("Pythia 1.4B", 1.21e9, 1.41e9, 24, 16, 16, 128, 2),
    Shape("Llama 8B", 6.98e9, 8.03e9, 32, 32, 8, 128, 2),
    Shape("Llama 70B", 68.4e9, 70.6e9, 80, 64, 8, 128, 2),
)


def scan_s(shape: Shape, units: dict[str, Any]) -> float:
    """Seconds of loading and of a default scan on one thread."""
    load = units["load_s_per_gb"] * shape.total * shape.bytes_per_number / 1e9
    return load + 2 * shape.body * TOKENS / units["scan_flop_per_s"]


def unit_table(units: dict[str, Any]) -> list[str]:
    """The measured unit costs."""
    return [
        "| unit | cost |",
        "| --- | --- |",
        f"| a scan's arithmetic, one thread | {units['scan_flop_per_s'] / 1e9:.0f} GFLOP/s, {TOKENS:,} tokens |",
        f"| a head of GPT-2 small's shape | {units['scan_s_per_head']:.2f} s |",
        f"| loading and checking, files in the page cache | {units['load_s_per_gb']:.1f} s per GB |",
        f"| peak memory of loading and scanning, over the weights | {units['peak_bytes_per_weight_byte']:.2f} |",
        f"| the store: each job | {units['file_bytes'] / 1e3:.1f} kB |",
        f"| the store: each row (a head and a role) | {units['row_bytes']:.0f} bytes, "
        f"{units['row_bytes_in_memory']:.0f} in memory |",
        f"| the driver: writing a job's file | {units['write_s_per_job'] * 1e3:.1f} ms |",
        f"| reading it back | {units['read_s_per_job'] * 1e3:.1f} ms |",
    ]


def model_table(units: dict[str, Any]) -> list[str]:
    """One scan of each shape."""
    lines = [
        "| model | weights | one thread | rows | in the store | sent between GPUs, tensor-parallel |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in SHAPES:
        rows = one.layers * one.heads * ROLES
        sent = TOKENS * one.layers * 2 * (one.heads + one.kv_heads) * one.d_head * one.bytes_per_number
        stored = units["file_bytes"] + rows * units["row_bytes"]
        lines.append(
            f"| {one.name} | {_gb(one.total * one.bytes_per_number)} | {_time(scan_s(one, units))} | {rows:,} | "
            f"{stored / 1e3:,.0f} kB | {_gb(sent)} |"
        )
    return lines


def sweep_table(units: dict[str, Any]) -> list[str]:
    """10,000 checkpoints on clusters of several sizes."""
    lines = [
        "| 10,000 checkpoints of | to fetch | workers | takes | deaths | work lost | driver busy | store | in memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in SHAPES[:2]:
        rows = one.layers * one.heads * ROLES
        for workers in (1, 16, 256):
            done = simulate([scan_s(one, units)] * 10_000, workers=workers, write_s=units["write_s_per_job"])
            stored = 10_000 * (units["file_bytes"] + rows * units["row_bytes"])
            read = 10_000 * rows * units["row_bytes_in_memory"]
            lines.append(
                f"| {one.name} | {_gb(10_000 * one.total * one.bytes_per_number)} | {workers} | {_time(done.wall_s)} | "
                f"{done.deaths} | {_time(done.lost_s)} | {done.driver_busy:.2%} | {_gb(stored)} | {_gb(read)} |"
            )
    return lines


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"


def _time(seconds: float) -> str:
    for size, word in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {word}"
    return f"{seconds:.0f} s"


def tables(units: dict[str, Any]) -> str:
    """All of them, as Markdown."""
    parts = [unit_table(units), model_table(units), sweep_table(units)]
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def main() -> int:
    """Measure, write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the unit costs on this machine")
    parser.add_argument("--check", action="store_true", help="fail if the tables are not those of the unit costs")
    options = parser.parse_args()
    if options.measure:
        UNITS.write_text(json.dumps(measure(), indent=1) + "\n")
    made = tables(json.loads(UNITS.read_text()))
    if options.check:
        return int(TABLES.read_text() != made)
    TABLES.write_text(made)
    print(made, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
