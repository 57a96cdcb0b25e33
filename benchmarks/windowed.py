"""What a scan costs where layers have windows, soft-caps or sinks: one prompt of 8,192 tokens, four families.

    python -m benchmarks.windowed [--json] [--only gemma2]

Random weights in float32, a window layer and a full one, narrower than the released models; window and head sizes are
theirs. A scan is compared with the body's own forward pass, which is stopped where a scan ends too, at the last
layer's output projection: with two layers the MLP that a scan leaves out would hide what it adds.

    time      seconds of the scan over those of the forward pass, the median over interleaved rounds
    memory    the same of the peak resident bytes above those of the loaded model, each in a process of its own

The own attention is PyTorch's fused one where transformers lets the family use it, which is to say Mistral and Gemma 3.
With soft-caps (Gemma 2) or sinks (GPT-OSS) it is eager.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import transformers

import headscope as hs
from benchmarks.peak import peak_above
from benchmarks.timing import interleaved, medians, ratio

LONG = 8192
PROCESSES = 3
SMALL: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "vocab_size": 1024,
    "max_position_embeddings": LONG,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
MIXED = ["sliding_attention", "full_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "sliding_window": 4096},
    "gemma2": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "sliding_window": 4096,
        "layer_types": MIXED,
    },
    "gemma3_text": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "sliding_window": 512,
        "layer_types": MIXED,
    },
    "gpt_oss": {
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "sliding_window": 128,
        "layer_types": MIXED,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 1024,
    },
}
OWN = {"mistral": "sdpa", "gemma2": "eager", "gemma3_text": "sdpa", "gpt_oss": "eager"}
"""The fastest attention that each family has itself on a processor."""


class _Enough(Exception):
    """The forward pass has come to where a scan ends."""


def model_of(family: str) -> Any:
    """Random weights."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, **SMALL | FAMILIES[family])
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=OWN[family]).eval()


def prompt_of() -> np.ndarray:
    """[BOS, r, r, ...]: runs of 512 tokens, each twice."""
    random, parts = np.random.default_rng(0), [np.zeros(1, dtype=np.int64)]
    while sum(map(len, parts)) < LONG:
        run = random.integers(2, SMALL["vocab_size"], 512)
        parts += [run, run]
    return np.concatenate(parts)[:LONG]


def own_forward(hf: Any, prompt: np.ndarray) -> Callable[[], None]:
    """The body's own pass, to the last layer's output projection."""
    tokens = torch.from_numpy(prompt)[None]

    def enough(module: Any, given: Any, output: Any) -> None:
        raise _Enough

    def run() -> None:
        handle = hf.model.layers[-1].self_attn.o_proj.register_forward_hook(enough)
        try:
            with torch.no_grad():
                hf.model(input_ids=tokens, use_cache=False)
        except _Enough:
            pass
        finally:
            handle.remove()

    return run


def times(family: str, rounds: int) -> dict[str, Any]:
    """Seconds of each, and the ratios."""
    hf, prompt = model_of(family), prompt_of()
    model, probe = hs.load(hf), hs.probe_tokens(prompt)
    hs.scan(model, probe=hs.probe_tokens(prompt[:64]))
    runs: dict[str, Callable[[], Any]] = {
        "own_forward": own_forward(hf, prompt),
        "scan": lambda: hs.scan(model, probe=probe),
    }
    seconds = interleaved(runs, rounds=rounds, warm_up=False)
    return {
        "own": OWN[family],
        "kernels": model.check.kernels,
        "median_s": medians(seconds),
        "ratio": round(ratio(seconds, "scan", "own_forward"), 3),
    }


def child(family: str, what: str) -> None:
    """Print the peak of one run."""
    hf, prompt = model_of(family), prompt_of()
    if what == "scan":
        model, probe = hs.load(hf), hs.probe_tokens(prompt)

        def run() -> None:
            hs.scan(model, probe=probe)

    else:
        run = own_forward(hf, prompt)
        own_forward(hf, prompt[:37])()
    print(peak_above(run))


def peaks(family: str) -> dict[str, Any]:
    """Median peak bytes of each, and the ratios."""
    found: dict[str, list[int]] = {"own_forward": [], "scan": []}
    for _ in range(PROCESSES):
        for name in found:
            command = [sys.executable, "-m", "benchmarks.windowed", "--only", family, "--child", name]
            out = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name].append(int(out.stdout.split()[-1]))
    middle = {name: int(statistics.median(values)) for name, values in found.items()}
    return {
        "peak_bytes": middle,
        "memory_ratio": round(middle["scan"] / middle["own_forward"], 3),
    }


def measure(families: Iterable[str], rounds: int) -> dict[str, Any]:
    """Both of each family, and the largest against what each runs itself."""
    rows = {family: times(family, rounds) | peaks(family) for family in families}
    return {
        "ratio_windowed": max(row["ratio"] for row in rows.values()),
        "memory_ratio_windowed": max(row["memory_ratio"] for row in rows.values()),
        "windowed": rows,
    }


def main() -> None:
    """The command in this module's text."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.windowed", description="Windows, soft-caps and sinks.")
    parser.add_argument("--json", action="store_true", help="one JSON document, as it prints anyhow")
    parser.add_argument("--only", choices=FAMILIES, help="one family")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.only, options.child)
        return
    print(json.dumps(measure([options.only] if options.only else FAMILIES, options.rounds), indent=1))


if __name__ == "__main__":
    main()
