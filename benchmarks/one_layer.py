"""One layer against two: the same training, and what comes of it.

    python -m benchmarks.one_layer --json
    python -m benchmarks.one_layer --write docs/generated/one_layer.md

Attention-only Llama models of width 128 with 4 heads, trained on random tokens that repeat at jittered distances, the
loss on the repeated tokens alone (`headscope.lab.training`, recipe `TRAINED`), on one thread. Measured every 100 steps
on fresh prompts: loss and accuracy on the repeated tokens, the strongest induction score, and the strongest
previous-token score. By chance the loss is log 512 = 6.24 nats.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from headscope.lab.measure import repeat_scores
from headscope.lab.repeats import jittered_repeats
from headscope.lab.training import TRAINED, attention_only_llama, repeats_source, train
from headscope.results import write_whole

VOCAB_SIZE, BOS_TOKEN_ID = 512, 0
EVERY = 100


def curve(n_layers: int, *, seed: int = 0) -> list[dict[str, Any]]:
    """One row every 100 steps."""
    model = attention_only_llama(vocab_size=VOCAB_SIZE, bos_token_id=BOS_TOKEN_ID, n_layers=n_layers, seed=seed)
    fresh = jittered_repeats(
        n_prompts=64,
        n_tokens=96,
        vocab_size=VOCAB_SIZE,
        bos_token_id=BOS_TOKEN_ID,
        period=(8, 45),
        gap=(0, 4),
        generator=torch.Generator().manual_seed(1_000_003),
    )
    rows = []
    source = repeats_source(vocab_size=VOCAB_SIZE, bos_token_id=BOS_TOKEN_ID)
    for progress in train(model, {"repeats": source}, TRAINED):
        if progress.step % EVERY:
            continue
        model.eval()
        scores = repeat_scores(model, fresh)
        model.train()
        rows.append(
            {
                "step": progress.step,
                "loss_nats": round(scores.loss_nats, 3),
                "accuracy": round(scores.accuracy, 3),
                "induction": round(float(scores.induction.max()), 3),
                "previous_token": round(float(scores.previous_token.max()), 3),
            }
        )
    return rows


def page(found: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "<!-- written by `python -m benchmarks.one_layer --write docs/generated/one_layer.md` -->",
        "",
        "| step | one layer: loss | accuracy | strongest stripe | two layers: loss | accuracy | strongest stripe |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one, two in zip(found["one_layer"], found["two_layers"], strict=True):
        cells = [f"{row['loss_nats']:.2f} | {row['accuracy']:.3f} | {row['induction']:.2f}" for row in (one, two)]
        lines.append(f"| {one['step']} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train both, print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--write", type=Path, help="write the table, as Markdown, to this file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"schema": "headscope.benchmark.one_layer/1", "seed": options.seed}
    found |= {name: curve(n, seed=options.seed) for name, n in (("one_layer", 1), ("two_layers", 2))}
    if options.write is not None:
        write_whole(options.write, page(found).encode())
    print(json.dumps(found, indent=1) if options.json else page(found), end="")


if __name__ == "__main__":
    main()
