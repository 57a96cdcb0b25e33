"""Every benchmark in turn, and `benchmarks/RESULTS.md` from what they print.

    python -m benchmarks [--json] [--only scan,peers] [--long]

Each runs in a process of its own, alone; its document is kept in `benchmarks/documents`, beside the page. `--only`
measures some again and takes the others from there. `bars` in a document are the most a figure may be, `floors` the
least. What a benchmark cannot measure here (no GPU, a package that is missing) is said, not left out. Half an hour on
two cores; `--long` adds those that train models for tens of minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("RESULTS.md")
KEPT = Path(__file__).with_name("documents")
QUICK: Mapping[str, tuple[str, ...]] = {
    "scan": ("--rounds", "6"),
    "peers": ("--rounds", "3"),
    "start": (),
    "ablate": (),
    "verify": ("--only", "null"),
    "atlas": (),
    "compare": ("--seeds", "5"),
    "composition": ("--rounds", "2"),
    "path_patching": ("--rounds", "1"),
    "page": (),
    "explore": (),
    "callback": (),
    "sweep": (),
    "families": (),
    "cuda": (),
}
LONG: Mapping[str, tuple[str, ...]] = {"coverage": (), "train": (), "behavior": (), "one_layer": ()}


def run(name: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """The document that one benchmark prints, or why there is none, and the day."""
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        return {"failed": lines[-1], "measured": day}
    return json.loads(done.stdout[done.stdout.index("{") :]) | {"measured": day}


def verdicts(found: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every figure with a bar, and whether it is met."""
    rows = []
    for name, document in found.items():
        for kind in ("bars", "floors"):
            for key, bar in document.get(kind, {}).items():
                value = document[key]
                met = value <= bar if kind == "bars" else value >= bar
                rows.append({"benchmark": name, "figure": key, "value": value, kind[:-1]: bar, "met": bool(met)})
    return rows


def markdown(found: Mapping[str, dict[str, Any]]) -> str:
    """The page `benchmarks/RESULTS.md`."""
    processor = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    days: dict[str, list[str]] = {}
    for name, document in found.items():
        days.setdefault(document["measured"], []).append(name)
    lines = [
        "# Benchmarks",
        "",
        f"Written by `python -m benchmarks`: {processor}, {os.cpu_count()} cores, Python {platform.python_version()}. "
        "Ratios are medians of interleaved rounds in one process; absolute times are those of this machine.",
        "",
        "Measured on " + "; ".join(f"{day}: {', '.join(names)}" for day, names in sorted(days.items())) + ".",
        "",
        *in_short(found),
        "",
        "## Every figure with a bar",
        "",
        "| benchmark | figure | value | bar | |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in verdicts(found):
        bar = f"<= {row['bar']:g}" if "bar" in row else f">= {row['floor']:g}"
        verdict = "met" if row["met"] else "MISSED"
        lines.append(f"| `{row['benchmark']}` | {row['figure']} | {row['value']:.4g} | {bar} | {verdict} |")
    lines += [f"| `{name}` | not measured: {one['failed']} | | | |" for name, one in found.items() if "failed" in one]
    if "scan" in found.get("peers", {}):
        lines += _peers(found["peers"])
    if "median_s" in found.get("start", {}):
        lines += _start(found["start"])
    lines += ["", "The documents behind this page are in `benchmarks/documents`.", ""]
    return "\n".join(lines)


SHORT = (
    (
        "every role of every head, 8 x 101 tokens and their controls; of the model's own forward pass",
        "scan ratio_short",
    ),
    ("one role by TransformerLens 4.3's cache, without controls; of the same", "peers transformerlens"),
    ("one role by nnsight, without controls; of the same", "peers nnsight"),
    ("every role, one prompt of 8,192 tokens: time, of the body's own pass without logits", "scan ratio_long"),
    ("the same: peak memory", "scan memory_ratio_long"),
    ("the loss without each of 144 heads, one after the other; of as many forward passes", "ablate ratio_exhaustive"),
    ("the ten heads whose loss counts most, by racing; of the same", "ablate ratio_race"),
    ("K-composition of all pairs of heads; of TransformerLens's time", "composition ratio"),
    ("one key patched from each of 96 heads; of the same by TransformerLens's hooks", "path_patching ratio"),
    (
        "`headscope scan demo`, a process; of importing torch and transformers' Llama",
        "start scan_demo_ratio",
    ),
    ("the check at loading; of a default scan, GPT-2 small's shape and `demo`, the larger", "scan check_share"),
    ("a sweep of 24 models: one worker's time, of two workers'", "sweep speedup_2_workers"),
    ("the live page: its slowest answer on `demo`, while the report is made, in ms", "explore slowest_ms"),
)
"""README's table: work, and the benchmark and figure that say what it costs."""


def in_short(found: Mapping[str, dict[str, Any]]) -> list[str]:
    """The table that README shows too; what was not measured is left out."""
    lines = ["| work | measured | bar |", "| --- | --- | --- |"]
    for work, place in SHORT:
        name, figure = place.split()
        document = found.get(name, {})
        value = document.get(figure, document.get("scan", {}).get("ratio_to_forward", {}).get(figure))
        if value is None:
            continue
        bar, floor = (document.get(kind, {}).get(figure) for kind in ("bars", "floors"))
        says = f"at most {bar:g}" if bar is not None else f"at least {floor:g}" if floor is not None else ""
        lines.append(f"| {work} | {value:.2f} | {says} |" if value < 10 else f"| {work} | {value:.0f} | {says} |")
    return lines


def _peers(document: dict[str, Any]) -> list[str]:
    scan = document["scan"]
    lines = [
        "",
        "## The induction stripe of all heads, 8 x 101 tokens, GPT-2 small's shape",
        "",
        "| road | median s | of the model's own full forward pass | largest difference from headscope |",
        "| --- | --- | --- | --- |",
    ]
    for name, share in scan["ratio_to_forward"].items():
        difference = scan["max_abs_diff"].get(name)
        shown = "" if difference is None else f"{difference:.0e}"
        lines.append(f"| {name} | {scan['median_s'][name]:.3f} | {share:.2f} | {shown} |")
    lines += [
        "",
        "## One long prompt, two layers of that shape",
        "",
        "| tokens | body's own forward, s | scan, s | ratio | memory ratio | eager patterns, s | the patterns alone |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in document["long"]:
        eager = row["s"].get("eager")
        lines.append(
            f"| {row['tokens']:,} | {row['s']['forward']:.2f} | {row['s']['scan']:.2f} | {row['time_ratio']:.2f} | "
            f"{row['memory_ratio']:.2f} | {'does not fit' if eager is None else f'{eager:.2f}'} | "
            f"{row['pattern_bytes'] / 1e9:.1f} GB |"
        )
    load = document["load"]
    lines += [
        "",
        "## Opening and starting",
        "",
        f"A checkpoint of that shape, {load['file_bytes'] / 1e6:.0f} MB. transformers maps the file and reads no "
        "weight before the first pass; the self-check is two passes, over 85 tokens together.",
        "",
        "| opening by | median s | peak memory |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {load['median_s'][road]:.2f} | {load['peak_bytes'][road] / 1e6:.0f} MB |"
            for road, name in (
                ("transformers", "transformers"),
                ("transformers_and_a_pass", "transformers, and one pass over 16 tokens"),
                ("headscope", "headscope, checked"),
            )
        ),
    ]
    return lines


def _start(document: dict[str, Any]) -> list[str]:
    seconds = document["median_s"].items()
    return ["", "| process | median s |", "| --- | --- |", *(f"| `{name}` | {one:.2f} |" for name, one in seconds)]


def main() -> None:
    """The command in this module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document; RESULTS.md is left alone")
    parser.add_argument("--only", help="names, with commas between; others as they were last measured")
    parser.add_argument("--long", action="store_true", help="also those that train models")
    options = parser.parse_args()
    chosen = {**QUICK, **(LONG if options.long else {})}
    if options.only:
        wanted = options.only.split(",")
        if unknown := [name for name in wanted if name not in {**QUICK, **LONG}]:
            parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join({**QUICK, **LONG})}")
        chosen = {name: {**QUICK, **LONG}[name] for name in wanted}
    KEPT.mkdir(exist_ok=True)
    for name, arguments in chosen.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        (KEPT / f"{name}.json").write_text(json.dumps(run(name, arguments), indent=1))
    files = {name: KEPT / f"{name}.json" for name in {**QUICK, **LONG}}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}
    rows = verdicts(found)
    if options.json:
        print(json.dumps({"schema": "headscope.benchmark/1", "bars": rows, "documents": found}, indent=1))
        return
    for row in rows:
        print(f"{'met   ' if row['met'] else 'MISSED'} {row['benchmark']:<12} {row['figure']:<22} {row['value']:.4g}")
    RESULTS.write_text(markdown(found))
    print(f"Written: {RESULTS}")


if __name__ == "__main__":
    main()
