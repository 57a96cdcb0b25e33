"""Ablating every head: how much of one full forward pass per head it costs, and whether the race finds the same heads.

    python -m benchmarks.ablate [--json]

On a model of GPT-2 small's shape in which 14 of 144 heads matter in a known order (`benchmarks.planted`). The loss is
that of the second copy, under zero ablation:

    naive         transformers' own forward pass, with its own attention, once per head; the head's share of the output
                  projection's input set to zero by a hook; the loss from its logits. Its cost is that of a sample of
                  heads, spread over all layers, times 144 over their number.
    exhaustive    `hs.ablate_each(search="exhaustive")`
    race          `hs.ablate_each(search="race", top=10)`, its gradient pass included

By counting, exhaustive cannot be cheaper than 0.52 of naive: per token, layer and head, the layers from the edited one
on, and the unembedding of the second copy alone. All results are compared: exhaustive with naive on the sampled heads,
the race's top 10 with exhaustive's.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy

import headscope as hs
from benchmarks.planted import planted
from benchmarks.timing import interleaved, medians, ratio
from headscope.probes.copies import copies

BARS = {"ratio_exhaustive": 0.57, "ratio_race": 0.15}
TOP = 10


def naive(hf: Any, tokens: Tensor, predictable: list[np.ndarray], heads: list[hs.HeadId]) -> list[float]:
    """Change of the mean second-copy loss for each head: two things a user would write, a hook and a loss."""
    width = hf.config.n_embd // hf.config.n_head

    def loss() -> Tensor:
        with torch.no_grad():
            logits = hf(input_ids=tokens, use_cache=False).logits
        rows = [cross_entropy(logits[row, places], tokens[row, places + 1]) for row, places in enumerate(predictable)]
        return torch.stack(rows).double()

    clean = loss()
    changes = []
    for head in heads:

        def silence(module: Any, arguments: tuple[Tensor], head: hs.HeadId = head) -> tuple[Tensor]:
            z = arguments[0].clone()
            z[..., head.head * width : (head.head + 1) * width] = 0
            return (z,)

        handle = hf.transformer.h[head.layer].attn.c_proj.register_forward_pre_hook(silence)
        try:
            changes.append(float((loss() - clean).mean()))
        finally:
            handle.remove()
    return changes


def measure(*, rounds: int, n_prompts: int, period: int, sampled: int) -> dict[str, Any]:
    """Everything, as one JSON-ready document."""
    hf = planted().model
    model = hs.load(hf)
    probe = hs.repeated_tokens(model, n_prompts=n_prompts, period=period, bos=True)
    tokens = torch.from_numpy(np.stack(probe.prompts))
    predictable = [copies(prompt).second for prompt in probe.prompts]
    every = [hs.HeadId(layer, head) for layer in range(hf.config.n_layer) for head in range(hf.config.n_head)]
    sample = every[:: len(every) // sampled]
    kept: dict[str, Any] = {}

    def run_naive() -> None:
        kept["naive"] = naive(hf, tokens, predictable, sample)

    def run(search: Any) -> Any:
        def once() -> None:
            kept[search] = hs.ablate_each(model, probe=probe, method="zero", search=search, top=TOP)

        return once

    hs.ablate_each(model, probe=hs.repeated_tokens(model, n_prompts=2, period=4, bos=True), method="zero")  # checks
    seconds = interleaved(
        {"naive": run_naive, "exhaustive": run("exhaustive"), "race": run("race")}, rounds=rounds, warm_up=False
    )
    # The clean pass of the naive way is one of its passes, and not counted against it.
    share = len(every) / (len(sample) + 1)
    exact = {one.head: one.delta_loss_nats.mean for one in kept["exhaustive"].heads}
    best = [one.head for one in kept["exhaustive"].heads[:TOP]]
    return {
        "schema": "headscope.benchmark.ablate/1",
        "ratio_exhaustive": round(ratio(seconds, "exhaustive", "naive") / share, 3),
        "ratio_race": round(ratio(seconds, "race", "naive") / share, 3),
        "same_top10": {one.head for one in kept["race"].heads[:TOP]} == set(best),
        "max_abs_diff_nats": max(abs(a - exact[head]) for head, a in zip(sample, kept["naive"], strict=True)),
        "bars": BARS,
        "floor_exhaustive": 0.52,
        "race_ablations": kept["race"].n_ablations,
        "exhaustive_ablations": kept["exhaustive"].n_ablations,
        "top10": [{"head": str(head), "delta_loss_nats": round(exact[head], 4)} for head in best],
        "median_s": medians(seconds),
        "naive_heads_timed": len(sample) + 1,
        "prompts": list(tokens.shape),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    """Print the document, or the figures that carry a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds; each takes minutes")
    parser.add_argument("--n-prompts", type=int, default=32)
    parser.add_argument("--period", type=int, default=12)
    parser.add_argument("--sampled", type=int, default=12, help="heads that the naive way is timed on")
    options = parser.parse_args()
    started = time.perf_counter()
    found = measure(rounds=options.rounds, n_prompts=options.n_prompts, period=options.period, sampled=options.sampled)
    found["wall_s"] = round(time.perf_counter() - started)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, bar in found["bars"].items():
        print(f"{name:<18} {found[name]:.3f}   {'met' if found[name] <= bar else 'MISSED'} (bar {bar:.2f})")
    print(
        f"same top 10        {found['same_top10']}, race {found['race_ablations']} of "
        f"{found['exhaustive_ablations']} ablations; worst difference {found['max_abs_diff_nats']:.1e} nats"
    )


if __name__ == "__main__":
    main()
