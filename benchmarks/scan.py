"""What a scan costs against the model's own forward pass, on random weights of GPT-2-small's shape.

    python -m benchmarks.scan --json

Short: 8 prompts of 101 tokens with their 8 controls, every detector, against the model's own full forward pass over
the same 16 x 101 tokens. By counting, a pass that ends with the last attention does 0.64 of that work.
Long: one prompt of 8,192 tokens, every detector, against the body's plain forward pass, which makes no logits.
Llama: 8 x 149 tokens of Llama 1B's shape, bfloat16, grouped queries, against the full forward pass. A processor without
bfloat16 instructions takes minutes for that pass, which hides what a scan adds: it is then not measured, and
`--only llama_bf16 --llama-layers 1` shows that it runs.
Windowed: windows, soft-caps and sinks at 8,192 tokens; `benchmarks.windowed`, which measures them alone.
Check: the self-check at loading against a default scan of the same model.
Memory: peak resident bytes above those of the loaded model, each in a process of its own, in turns, median of seven:
the allocator's chance moves a single figure by a tenth.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

import headscope as hs
from benchmarks import windowed
from benchmarks.peak import peak_above
from benchmarks.timing import interleaved, medians, ratio
from benchmarks.tiny import random_llama_bf16
from headscope.model.selfcheck import selfcheck

LONG = 8192
PROCESSES = 7
LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
}
LLAMA_LAYERS, LLAMA_WORDS = 16, 128_256
KERNELS = ("flash", "tiled", "reference")


def gpt2_small(n_positions: int) -> transformers.GPT2LMHeadModel:
    """GPT-2 small's shape with random weights."""
    torch.manual_seed(0)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_positions=n_positions)).eval()


def long_prompt() -> np.ndarray:
    """[BOS, r, r, x]: 8,192 tokens in which nearly half repeat."""
    run = np.random.default_rng(0).permutation(50_000)[: (LONG - 1) // 2]
    return np.concatenate([[50_256], run, run, [0]])[:LONG]


def own_forward(model: torch.nn.Module, tokens: torch.Tensor) -> Callable[[], Any]:
    """A plain forward pass with the model's own attention."""

    def run() -> None:
        with torch.no_grad():
            model(input_ids=tokens, use_cache=False)

    return run


def short(rounds: int) -> dict[str, Any]:
    """Scan of 8 x 101 tokens and their controls against the full forward pass."""
    hf = gpt2_small(1024)
    model = hs.load(hf)
    probe = hs.repeated_tokens(model, n_prompts=8, period=50, jitter=False)
    assert probe.controls is not None
    tokens = torch.from_numpy(np.stack([*probe.prompts, *probe.controls]))
    runs: dict[str, Callable[[], Any]] = {"own_full_forward": own_forward(hf, tokens)}
    for kernel in KERNELS:
        runs[kernel] = lambda kernel=kernel: hs.scan(model, probe=probe, kernel=kernel)
    seconds = interleaved(runs, rounds=rounds)
    return {
        "tokens": list(tokens.shape),
        "median_s": medians(seconds),
        "ratio": {kernel: round(ratio(seconds, kernel, "own_full_forward"), 3) for kernel in KERNELS},
    }


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16 itself."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def llama_bf16(rounds: int, layers: int = LLAMA_LAYERS) -> dict[str, Any]:
    """Scan of 4 x 149 tokens and their controls against the full forward pass, both in bfloat16.

    With fewer layers there are fewer words, so that the unembedding keeps its share; the last MLP, which a scan leaves
    out, has a larger one.
    """
    words = LLAMA_WORDS * layers // LLAMA_LAYERS
    config = transformers.LlamaConfig(
        **LLAMA_1B,
        num_hidden_layers=layers,
        vocab_size=words,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
    )
    hf = random_llama_bf16(config)
    model = hs.load(hf)
    probe = hs.repeated_tokens(model, n_prompts=4, period=74, jitter=False, bos=True)
    assert probe.controls is not None
    tokens = torch.from_numpy(np.stack([*probe.prompts, *probe.controls]))

    def bare() -> None:
        model.run(tokens, lambda attention: None, stop_at_last=True)

    seconds = interleaved(
        {"own_full_forward": own_forward(hf, tokens), "bare_pass": bare, "scan": lambda: hs.scan(model, probe=probe)},
        rounds=rounds,
    )
    return {
        "tokens": list(tokens.shape),
        "layers": layers,
        "median_s": medians(seconds),
        "ratio": round(ratio(seconds, "scan", "own_full_forward"), 3),
        "ratio_bare_pass": round(ratio(seconds, "bare_pass", "own_full_forward"), 3),
        "scoring_share": round(ratio(seconds, "scan", "bare_pass") - 1, 3),
    }


def long(rounds: int) -> dict[str, Any]:
    """Scan of one long prompt against the body's plain forward pass."""
    hf = gpt2_small(LONG)
    model = hs.load(hf)
    prompt = long_prompt()
    probe = hs.probe_tokens(prompt)
    hs.scan(model, probe=hs.probe_tokens(prompt[:64]))  # warms up; a whole round would take a minute
    seconds = interleaved(
        {
            "own_body_forward": own_forward(hf.transformer, torch.from_numpy(prompt)[None]),
            "flash": lambda: hs.scan(model, probe=probe, kernel="flash"),
        },
        rounds=rounds,
        warm_up=False,
    )
    tiled = interleaved({"tiled": lambda: hs.scan(model, probe=probe, kernel="tiled")}, rounds=1, warm_up=False)
    both = {**seconds, **tiled}
    base = medians(seconds)["own_body_forward"]
    return {
        "tokens": [1, LONG],
        "median_s": medians(both),
        "ratio": {
            "flash": round(ratio(seconds, "flash", "own_body_forward"), 3),
            "tiled": round(medians(tiled)["tiled"] / base, 3),
            "reference": None,
        },
        "note": "reference would hold 12 x 8,192 x 8,192 numbers a layer and is left out; tiled is timed once",
    }


def check(rounds: int) -> dict[str, Any]:
    """What the self-check at loading costs, as a share of a default scan: on GPT-2 small's shape and on `demo`."""
    shares = {}
    # A check of `demo` takes ten milliseconds, and swings by half of that.
    for name, source, n in (("gpt2_small", gpt2_small(1024), rounds), ("demo", "demo", 20 * rounds)):
        model = hs.load(source)
        seconds = interleaved(
            {"check": lambda model=model: selfcheck(model.backbone), "scan": lambda model=model: hs.scan(model)},
            rounds=n,
        )
        shares[name] = round(ratio(seconds, "check", "scan"), 3)
    return shares


def peak_bytes(what: str) -> int:
    """Peak resident bytes above the loaded model's, of one long forward or scan in a fresh process."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.scan", "--child", what], capture_output=True, text=True, check=True
    )
    return int(out.stdout.strip().splitlines()[-1])


def child(what: str) -> None:
    """Print the peak of one run."""
    hf = gpt2_small(LONG)
    prompt = long_prompt()
    if what == "scan":
        model, probe = hs.load(hf), hs.probe_tokens(prompt)

        def run() -> None:
            hs.scan(model, probe=probe)

    else:
        run = own_forward(hf.transformer, torch.from_numpy(prompt)[None])
        own_forward(hf.transformer, torch.from_numpy(prompt[:37])[None])()
    print(peak_above(run))


def measure(rounds: int) -> dict[str, Any]:
    """Everything that this processor can measure, as one JSON-ready document."""
    few = max(2, rounds // 3)
    quick, slow, checks = short(rounds), long(few), check(3)
    peaks = [{name: peak_bytes(name) for name in ("forward", "scan")} for _ in range(PROCESSES)]
    memory = {name: int(statistics.median(one[name] for one in peaks)) for name in ("forward", "scan")}
    found = {
        "schema": "headscope.benchmark.scan/1",
        "ratio_short": quick["ratio"]["flash"],
        "ratio_long": slow["ratio"]["flash"],
        "memory_ratio_long": round(memory["scan"] / memory["forward"], 3),
        "check_share": max(checks.values()),
        "bars": {"ratio_short": 0.70, "ratio_long": 1.10, "memory_ratio_long": 1.10, "check_share": 0.10},
        "rounds": {"short": rounds, "long": few},
        "short": quick,
        "long": slow,
        "peak_bytes_long": memory,
        "peak_bytes_long_of_each": peaks,
        "check_share_of_scan": checks,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "bfloat16": has_bf16(),
        },
    }
    found |= windowed.measure(windowed.FAMILIES, few)
    found["bars"] |= {"ratio_windowed": 1.15, "memory_ratio_windowed": 1.15}
    if has_bf16():
        found["llama_bf16"] = llama_bf16(few)
        found["ratio_llama_bf16"] = found["llama_bf16"]["ratio"]
        found["bars"]["ratio_llama_bf16"] = 1.0
    return found


def main() -> None:
    """Print the document, or the three figures that carry a bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds of the short comparison")
    parser.add_argument("--child", choices=("forward", "scan"), help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("short", "llama_bf16"), help="print this comparison alone")
    parser.add_argument("--llama-layers", type=int, default=LLAMA_LAYERS)
    options = parser.parse_args()
    if options.only:
        alone = short(options.rounds) if options.only == "short" else llama_bf16(options.rounds, options.llama_layers)
        print(json.dumps(alone, indent=1))
        return
    if options.child:
        child(options.child)
        return
    found = measure(options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, bar in found["bars"].items():
        print(f"{name:<18} {found[name]:.3f}   {'met' if found[name] <= bar else 'MISSED'} (bar {bar:.2f})")


if __name__ == "__main__":
    main()
