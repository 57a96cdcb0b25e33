"""Damage thousands of inputs, run for long, kill and interrupt what works: `python -m soak`.

Prints how much was tried and what came of it. Exit code 1 when anything was not as it must be.
"""

from __future__ import annotations

import argparse
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


KILLS = 40
"""Of each kind, in a whole run."""
INTERRUPTS = 6
"""Of each command, in a whole run."""


def main() -> None:
    """The command in this module's text."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="share of a whole run (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default 0)")
    given = parser.parse_args()

    import torch
    import transformers

    from soak import interrupts, kills, long
    from soak.fuzz import fuzz

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    failures: list[str] = []
    tried = 0
    for name, outcome in fuzz(share=given.share, seconds=330 * given.share, seed=given.seed).items():
        tried += outcome.tried
        failures += outcome.defects
        print(
            f"{name:<32} {outcome.tried:>6,} damaged  {outcome.tried - outcome.read:>6,} refused  {outcome.read:>6,} "
            f"read and true  {len(outcome.defects)} defects",
            flush=True,
        )
    print(f"{'all':<32} {tried:>6,} damaged", flush=True)
    for name, memory in (
        ("scans", long.scans(max(20, round(1000 * given.share)))),
        ("loads", long.loads(max(10, round(200 * given.share)))),
    ):
        print(
            f"{name:<32} {memory.times:>6,} times    {memory.first_bytes / 1e6:.0f} MB, then "
            f"{memory.last_bytes / 1e6:.0f} MB: {memory.growth:+.1%} (at most {long.GROWTH:+.0%})",
            flush=True,
        )
        if memory.growth > long.GROWTH:
            failures.append(f"{name}: memory grew by {memory.growth:.1%}")
    print(f"{'threads':<32} {long.threads():>6,} scans    the numbers of one alone")
    print(f"{'processes':<32} {long.processes():>6,} scans    the numbers of this one")
    number = max(1, round(KILLS * given.share))
    found = {
        "sweep": kills.sweeps(number, seed=given.seed),
        "train": kills.runs(number, seed=given.seed),
        "report": kills.reports(number, seed=given.seed),
    }
    for name, outcome in (found | kills.on_ray(number, seed=given.seed)).items():
        print(
            f"{'killed ' + name:<32} {outcome.killed:>6,} times    {len(outcome.defects)} unlike an undisturbed run",
            flush=True,
        )
        failures += [f"killed {name}: {one}" for one in outcome.defects]
        if outcome.killed < number:
            failures.append(f"killed {name}: {outcome.killed} kills came inside the work, {number} were asked for")
    stopped = interrupts.interrupts(max(1, round(INTERRUPTS * given.share)), seed=given.seed)
    print(f"{'interrupted by Ctrl-C':<32} {stopped.sent:>6,} times    {len(stopped.defects)} that did not say so")
    failures += [f"interrupted {one}" for one in stopped.defects]
    for failure in failures:
        print(f"DEFECT {failure}", file=sys.stderr)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
