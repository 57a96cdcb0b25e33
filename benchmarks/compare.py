"""What a comparison finds: planted changes, false changes where nothing changed, number formats, and its cost.

python -m benchmarks.compare --seeds 20 --json

planted     one head's values silenced (swap test), one head's queries silenced, small keys of one head (rank 1): is the
planted head found, and is any other head called changed?
unchanged   the model beside itself, and beside exact reparametrisations: heads called changed, and heads that the match
sends elsewhere than they went
formats     the packaged model in float32 beside bfloat16: the largest difference
cost        one comparison of two models over the two scans apart, median of 5
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from typing import Any

import torch
from transformers import GPT2LMHeadModel

import headscope as hs
from headscope.heads import HeadId
from headscope.planted.handbuilt import HandBuilt, handbuilt
from headscope.planted.reparametrised import CHANGES, reparametrised

SMALL: dict[str, Any] = {"n_prompts": 8, "period": 12}


def model_of(seed: int) -> HandBuilt:
    """A small model whose heads are known."""
    return handbuilt(vocab_size=64, n_positions=64, n_digits=1, decoys=("duplicate_token", "positional"), seed=seed)


def planted(built: HandBuilt, what: str, head: HeadId, seed: int) -> Any:
    """A copy with one head changed."""
    model: Any = copy.deepcopy(built.model)
    d_model, d_head = model.config.n_embd, model.config.n_embd // model.config.n_head
    c_attn = model.transformer.h[head.layer].attn.c_attn
    first = {"queries": 0, "keys": 1, "values": 2}[what] * d_model + head.head * d_head
    mine = slice(first, first + d_head)
    with torch.no_grad():
        if what == "keys":
            random = torch.Generator().manual_seed(seed)
            weight = c_attn.weight[:, mine]
            change = torch.outer(torch.randn(d_model, generator=random), torch.randn(d_head, generator=random))
            c_attn.weight[:, mine] += change * weight.norm() / change.norm()
        else:
            c_attn.weight[:, mine] = 0.0
            c_attn.bias[mine] = 0.0
    return model


def measure(seeds: int) -> dict[str, Any]:
    """Everything, as one document."""
    found = {"values": 0, "queries": 0, "keys": 0}
    others = dict.fromkeys(found, 0)
    random_share, unchanged, comparisons, misplaced = 0.0, 0, 0, 0
    for seed in range(seeds):
        built = model_of(seed)
        head = built.heads("induction")[0]
        for what in ("queries", "keys"):
            changed = hs.compare(built.model, planted(built, what, head, seed), **SMALL, seed=seed).changed
            found[what] += head in [one.head for one in changed]
            others[what] += sum(one.head != head for one in changed)
        swap = (
            hs.compare(built.model, planted(built, "values", head, seed), swap=True, **SMALL, seed=seed).pairs[0].swap
        )
        sources = [] if swap is None or swap.sources is None else list(swap.sources.heads)
        found["values"] += head in sources
        others["values"] += sum(one != head for one in sources)
        if swap is not None:
            random_share = max([random_share, *(abs(one.restores.mean) for one in swap.random)])
        same = [(built.model, {one: one for one in built.roles})]
        assert isinstance(built.model, GPT2LMHeadModel)
        same += [reparametrised(built.model, change, seed=seed) for change in CHANGES]
        for other, where in same:
            pair = hs.compare(built.model, other, **SMALL, seed=seed).pairs[0]
            unchanged += len(pair.changed)
            misplaced += sum(one.match is not None and one.counterpart != where[one.head] for one in pair.heads)
            comparisons += 1
    wide, narrow = hs.load("demo", dtype="float32"), hs.load("demo", dtype="bfloat16")
    formats = hs.compare(wide, narrow)
    ratios = []
    for _ in range(5):
        started = time.perf_counter()
        hs.scan(wide)
        hs.scan(wide)
        apart = time.perf_counter() - started
        ratios.append(hs.compare(wide, wide).timing.wall_s / apart)
    return {
        "seeds": seeds,
        "planted_found": found,
        "other_heads_called_changed": others,
        "largest_share_of_random_heads": random_share,
        "unchanged_comparisons": comparisons,
        "false_changes": unchanged,
        "misplaced_heads": misplaced,
        "float32_bfloat16": formats.finding,
        "cost_over_two_scans": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    document = measure(options.seeds)
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        for name, value in document.items():
            print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
