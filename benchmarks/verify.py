"""How many forward passes over its prompts `verify` takes on models of 12 layers of 12 heads.

    python -m benchmarks.verify [--json] [--only null]

A pass is the probe's 32 prompts through all layers. Counted are the tokens that each layer's attention really reads: a
pass that starts again at layer 6 counts half. The one backward pass of the search is not counted.

    passes_null      random weights, where no head matters: the search can stop early, and nothing is left to try
    passes_planted   a model of GPT-2 small's size with 14 planted heads (`benchmarks.planted`), on prompts that repeat
                     12 tokens, as in `benchmarks.ablate`; minutes on a processor

`--only planted` or `--only null` measures one of them.

The model of random weights is narrow: width does not change what a pass is, but narrow heads do less to the loss.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import headscope as hs
from benchmarks.atlas import HEADS, LAYERS, counted
from benchmarks.planted import planted
from headscope.model.load import Model

BARS = {"passes_null": 15, "passes_planted": 30}


def passes(model: Model, period: int | None) -> dict[str, Any]:
    """What `verify` reads, in passes over its prompts, and what it finds."""
    probe = hs.repeated_tokens(model, period=period)
    with counted(model) as tokens:
        # What is tried once per model, like restarting; the counter's hooks make another model of it, so within it.
        hs.ablate_each(model, probe=hs.repeated_tokens(model, n_prompts=2, period=12), method="zero")
        tokens[0] = 0
        found = hs.verify(model, probe=probe)
    return {
        "passes": round(tokens[0] / (LAYERS * sum(map(len, probe.prompts))), 3),
        "verdicts": dict(Counter(one.verdict for one in found.heads)),
        "removed": sum(one.exact for one in found.heads),
    }


def null() -> Model:
    """Random weights."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS, n_head=HEADS, n_embd=4 * HEADS, n_inner=8, vocab_size=512, bos_token_id=0, eos_token_id=0
    )
    return hs.load(GPT2LMHeadModel(config).eval())


MODELS: dict[str, tuple[Callable[[], Model], int | None]] = {
    "null": (null, None),
    "planted": (lambda: hs.load(planted().model), 12),
}
"""Each model, and the period of its prompts where it is not the default."""


def measure(names: Iterable[str]) -> dict[str, Any]:
    """The counts of these models, as a JSON-ready document."""
    found: dict[str, Any] = {"schema": "headscope.benchmark.verify/1"}
    for name in names:
        make, period = MODELS[name]
        found[name] = passes(make(), period)
        found[f"passes_{name}"] = found[name]["passes"]
    return found | {"bars": {name: bar for name, bar in BARS.items() if name in found}}


def main() -> None:
    """Print what was counted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verify", description="Forward passes of verify.")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--only", choices=MODELS, help="one of the two models")
    options = parser.parse_args()
    document = measure(MODELS if options.only is None else [options.only])
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for name, bar in document["bars"].items():
        print(f"{name:<16} {document[name]:7.3f}   {'met' if document[name] <= bar else 'MISSED'} (bar {bar})")


if __name__ == "__main__":
    main()
