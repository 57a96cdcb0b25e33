"""K-composition of all pairs of heads against TransformerLens's, on random weights of GPT-2 small's shape.

    python -m pip install -c constraints.txt -e ".[transformerlens]"
    python -m benchmarks.composition --json

Both score the same 144 heads in one process, one after the other, on one thread each:

    transformerlens     `all_composition_scores("K")` of a bridge around a copy of the model, in compatibility
                        mode: LayerNorm folded and writing weights centred
    headscope           `composition_scores(layers, ["k"])` of the weights that `layer_weights` found; it folds and
                        centres them itself
    with_extraction     the same, `layer_weights` included

The two are the same numbers: gains are folded into W_Q and W_K, means taken off what is written and read. Gains and
biases of the norms are random, so that the folding shows. TransformerLens scores all 144 x 144 pairs and sets those to
zero whose sender is not in an earlier layer; its copies of all cores take about 10 GB. Compared are the 9,504 others.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import transformers

import headscope as hs
from benchmarks.timing import interleaved, medians, ratio
from headscope.evidence.composition.measure import composition_scores
from headscope.model.weights import layer_weights

BARS = {"ratio": 0.1, "max_rel_diff": 1e-4}


def gpt2_small() -> transformers.GPT2LMHeadModel:
    """GPT-2 small's shape; matrices, gains and biases random."""
    torch.manual_seed(0)
    hf = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if ".ln_" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    return hf


def bridge(hf: transformers.GPT2LMHeadModel, *, compatible: bool = True) -> Any:
    """TransformerLens's model around a copy, since it rewrites the weights in place; nothing is fetched."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module  # pyright: ignore

    made = build_bridge_from_module(copy.deepcopy(hf), "GPT2LMHeadModel", hf_config=hf.config)
    if compatible:
        made.enable_compatibility_mode(disable_warnings=True)
    return made


def measure(rounds: int, threads: int) -> dict[str, Any]:
    """Everything, as one JSON-ready document."""
    torch.set_num_threads(threads)
    hf = gpt2_small()
    model = hs.load(hf)
    layers = layer_weights(model)
    theirs = bridge(hf)
    kept: dict[str, Any] = {}

    def transformerlens() -> None:
        with torch.no_grad():
            kept["transformerlens"] = theirs.all_composition_scores("K").scores

    def headscope() -> None:
        kept["headscope"] = composition_scores(layers, ["k"])

    def with_extraction() -> None:
        composition_scores(layer_weights(model), ["k"])

    headscope()  # The first product in a process is slow. Theirs takes half a minute, beside which that is nothing.
    seconds = interleaved(
        {"transformerlens": transformerlens, "headscope": headscope, "with_extraction": with_extraction},
        rounds=rounds,
        warm_up=False,
    )
    ours = kept["headscope"].scores["k"]
    wanted = kept["transformerlens"].double().reshape(ours.shape).numpy()
    valid = np.isfinite(ours)
    assert np.array_equal(valid, wanted != 0), "both score the pairs whose sender is in an earlier layer"
    return {
        "schema": "headscope.benchmark.composition/1",
        "ratio": round(ratio(seconds, "headscope", "transformerlens"), 4),
        "max_rel_diff": float((np.abs(ours - wanted)[valid] / wanted[valid]).max()),
        "ratio_with_extraction": round(ratio(seconds, "with_extraction", "transformerlens"), 4),
        "bars": BARS,
        "pairs": int(valid.sum()),
        "median_s": medians(seconds),
        "rounds": rounds,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "transformer_lens": version("transformer-lens"),
        },
    }


def main() -> None:
    """Print the document, or the figures that carry a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds; each takes half a minute or more")
    parser.add_argument("--threads", type=int, default=1, help="one: a second core that is busy slows both unevenly")
    options = parser.parse_args()
    if find_spec("transformer_lens") is None:
        print(
            'transformer_lens is not installed; python -m pip install -c constraints.txt -e ".[transformerlens]"',
            file=sys.stderr,
        )
        raise SystemExit(2)
    started = time.perf_counter()
    found = measure(options.rounds, options.threads)
    found["wall_s"] = round(time.perf_counter() - started)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, bar in found["bars"].items():
        print(f"{name:<22} {found[name]:.2g}   {'met' if found[name] <= bar else 'MISSED'} (bar {bar:g})")
    print(f"{'ratio_with_extraction':<22} {found['ratio_with_extraction']:.2g}   no bar")


if __name__ == "__main__":
    main()
