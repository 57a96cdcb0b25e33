"""One stripe by four roads, long prompts, and loading: headscope beside its peers.

    python -m pip install -c constraints.txt -e ".[transformerlens,nnsight]"
    python -m benchmarks.peers --json

scan     the induction stripe of all heads on 8 prompts [BOS, r, r] of 101 tokens, GPT-2 small's shape, random weights:
             headscope         `hs.scan`, every role
             eager             transformers' `output_attentions=True`, then the stripe
             transformerlens   `run_with_cache` of the patterns alone, then the stripe
             nnsight           a trace that saves every layer's pattern, then the stripe
         Interleaved in one process; `max_abs_diff` is between headscope's numbers and each peer's.
long     one prompt of 1k to 32k tokens through two layers of that shape: scan, the body's own forward pass, and
         eager patterns as far as they fit. Peak memory above the loaded model, each in a process of its own.
load     opening a checkpoint of that shape from a folder, the self-check included; transformers alone; and transformers
         with one short pass, since opening maps the file, and what first reads the weights waits for them. Peak memory
         in a process of its own for each.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import transformers

import headscope as hs
from benchmarks.peak import peak_above
from benchmarks.scan import gpt2_small, own_forward
from benchmarks.timing import interleaved, medians, ratio

PERIOD = 50
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
SPARE = 0.6
"""Share of the free memory that eager patterns may take."""


def stripe(patterns: torch.Tensor) -> torch.Tensor:
    """[head]: mean attention from each token of the second copy to the token after its first place."""
    query = torch.arange(PERIOD + 1, 2 * PERIOD + 1)
    return patterns[:, :, query, query - PERIOD + 1].mean((0, 2))


def scan(rounds: int) -> dict[str, Any]:
    """The stripe of all heads, by every road."""
    from nnsight import NNsight
    from transformer_lens.model_bridge.sources import build_bridge_from_module  # pyright: ignore

    hf = gpt2_small(1024)
    model = hs.load(hf)
    run = np.stack([np.random.default_rng(row).permutation(50_000)[:PERIOD] for row in range(8)])
    tokens = torch.from_numpy(np.concatenate([np.full((8, 1), 50_256), run, run], axis=1))
    probe = hs.probe_tokens(tokens)
    eager = copy.deepcopy(hf)
    eager.set_attn_implementation("eager")
    bridge = build_bridge_from_module(copy.deepcopy(hf), "GPT2LMHeadModel", hf_config=hf.config)
    traced = NNsight(eager)
    found: dict[str, torch.Tensor] = {}

    def by_headscope() -> None:
        scores = {score.head: score.mean for score in hs.scan(model, probe=probe).ranked("induction")}
        found["headscope"] = torch.tensor([scores[head] for head in sorted(scores)])

    def by_eager() -> None:
        with torch.no_grad():
            attentions = eager(input_ids=tokens, output_attentions=True, use_cache=False).attentions
        found["eager"] = torch.cat([stripe(one) for one in attentions])

    def by_transformerlens() -> None:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
        found["transformerlens"] = torch.cat([stripe(cache["pattern", layer]) for layer in range(12)])

    def by_nnsight() -> None:
        saved: list[torch.Tensor] = []
        with torch.no_grad(), traced.trace(input_ids=tokens, use_cache=False):
            for block in traced.transformer.h:
                saved.append(block.attn.output[1].save())
        found["nnsight"] = torch.cat([stripe(one) for one in saved])

    seconds = interleaved(
        {
            "headscope": by_headscope,
            "eager": by_eager,
            "transformerlens": by_transformerlens,
            "nnsight": by_nnsight,
            "own_full_forward": own_forward(hf, tokens),
        },
        rounds=rounds,
    )
    return {
        "tokens": list(tokens.shape),
        "median_s": medians(seconds),
        "spread_s": {name: [round(min(some), 4), round(max(some), 4)] for name, some in seconds.items()},
        "ratio_to_forward": {name: round(ratio(seconds, name, "own_full_forward"), 3) for name in seconds},
        "max_abs_diff": {
            name: float((found[name] - found["headscope"]).abs().max()) for name in found if name != "headscope"
        },
    }


def two_layers(length: int) -> transformers.GPT2LMHeadModel:
    """Two layers of GPT-2 small's shape, for prompts of any length."""
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=length, n_layer=2)).eval()


def long_road(road: str, length: int) -> Callable[[], Any]:
    """One pass over one long prompt."""
    hf = two_layers(length)
    run = np.random.default_rng(0).permutation(50_000)[: (length - 1) // 2]
    prompt = np.concatenate([[50_256], run, run, [0]])[:length]
    tokens = torch.from_numpy(prompt)[None]
    if road == "forward":
        return own_forward(hf.transformer, tokens)
    if road == "scan":
        model, probe = hs.load(hf), hs.probe_tokens(prompt)
        return lambda: hs.scan(model, probe=probe)
    hf.set_attn_implementation("eager")
    return lambda: hf.transformer(input_ids=tokens, output_attentions=True, use_cache=False)


def opening(road: str, folder: str) -> Callable[[], Any]:
    """Opening a checkpoint."""
    from_pretrained = transformers.AutoModelForCausalLM.from_pretrained
    match road:
        case "headscope":
            return lambda: hs.load(folder)
        case "transformers":
            return lambda: from_pretrained(folder)
        case _:
            return lambda: from_pretrained(folder)(torch.arange(16)[None], use_cache=False)


def child(road: str, what: str) -> None:
    """Print seconds and peak bytes of one long pass or one opening, after a small one."""
    with torch.no_grad():
        if what.isdigit():
            long_road(road, 64)()
            run = long_road(road, int(what))
        else:
            with tempfile.TemporaryDirectory() as folder:
                two_layers(64).save_pretrained(folder)
                opening(road, folder)()
            run = opening(road, what)
        started = time.perf_counter()
        peak = peak_above(run)
        print(json.dumps({"s": time.perf_counter() - started, "bytes": peak}))


def in_child(road: str, what: str) -> dict[str, float]:
    """The same in a process of its own."""
    arguments = [sys.executable, "-m", "benchmarks.peers", "--child", road, what]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def long(rounds: int) -> list[dict[str, Any]]:
    """Every length, with the ratio of scan to forward."""
    table = []
    for length in LENGTHS:
        patterns = 2 * 12 * length * length * 4
        fits = 2 * patterns < SPARE * psutil.virtual_memory().available
        roads = ("forward", "scan", *(["eager"] if fits else []))
        runs: dict[str, list[dict[str, float]]] = {road: [] for road in roads}
        for turn in range(rounds):
            for road in roads[turn % len(roads) :] + roads[: turn % len(roads)]:
                runs[road].append(in_child(road, str(length)))
        middle = {
            road: {key: statistics.median(one[key] for one in some) for key in ("s", "bytes")}
            for road, some in runs.items()
        }
        table.append(
            {
                "tokens": length,
                "s": {road: round(one["s"], 3) for road, one in middle.items()},
                "peak_bytes": {road: int(one["bytes"]) for road, one in middle.items()},
                "time_ratio": round(middle["scan"]["s"] / middle["forward"]["s"], 3),
                "memory_ratio": round(middle["scan"]["bytes"] / max(1, middle["forward"]["bytes"]), 3),
                "pattern_bytes": patterns,
            }
        )
    return table


def loading(rounds: int) -> dict[str, Any]:
    """Opening a checkpoint of GPT-2 small's shape: transformers alone, with a pass, and headscope with its check."""
    roads = ("transformers", "transformers_and_a_pass", "headscope")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        gpt2_small(1024).save_pretrained(Path(folder))
        seconds = interleaved({road: opening(road, folder) for road in roads}, rounds=rounds)
        peaks = {road: [in_child(road, folder)["bytes"] for _ in range(max(1, rounds // 2))] for road in roads}
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return {
        "median_s": medians(seconds),
        "ratio": round(ratio(seconds, "headscope", "transformers"), 3),
        "ratio_to_a_pass": round(ratio(seconds, "headscope", "transformers_and_a_pass"), 3),
        "peak_bytes": {road: int(statistics.median(some)) for road, some in peaks.items()},
        "file_bytes": size,
    }


def sharded() -> dict[str, Any]:
    """Peak memory of opening a bfloat16 checkpoint in several files, as a share of the files: 2 is a second copy."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32_000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    with tempfile.TemporaryDirectory() as folder:
        transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder, max_shard_size="100MB")
        sizes = [file.stat().st_size for file in Path(folder).glob("*.safetensors")]
        peaks = {road: in_child(road, folder)["bytes"] for road in ("transformers_and_a_pass", "headscope")}
    share = {road: round(peak / sum(sizes), 3) for road, peak in peaks.items()}
    return {"files": len(sizes), "file_bytes": sum(sizes), "peak_share": share}


def measure(rounds: int) -> dict[str, Any]:
    """Everything, as one JSON-ready document."""
    stripes, shards = scan(rounds), sharded()
    return {
        "schema": "headscope.benchmark.peers/1",
        "largest_difference": max(stripes["max_abs_diff"].values()),
        "sharded_peak_of_files": shards["peak_share"]["headscope"],
        "bars": {"largest_difference": 1e-4, "sharded_peak_of_files": 1.1},
        "scan": stripes,
        "long": long(max(1, rounds // 3)),
        "load": loading(rounds),
        "sharded": shards,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            **{name: version(name) for name in ("torch", "transformers", "transformer-lens", "nnsight")},
        },
    }


def main() -> None:
    """Print the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document, as it does anyhow")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(measure(options.rounds), indent=1))


if __name__ == "__main__":
    main()
