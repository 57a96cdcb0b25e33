"""A model of Llama 8B's shape on a GPU: what a scan costs against a plain forward pass, at 4k, 32k and 128k tokens.

    python -m benchmarks.cuda --json
    python -m benchmarks.cuda --device cpu --layers 2 --width 64 --lengths 257,513      the same code without a GPU

Random weights in bfloat16, one prompt in which nearly half repeats, every detector. The forward pass is the body's own
attention without logits, which at 128k tokens and 128k words would take 34 GB alone.

    time_ratio      seconds of the scan over those of the forward pass, the median over interleaved rounds
    extra_memory    bytes allocated at the peak of the scan beyond those at the peak of the forward pass, as a share of
                    the latter, weights included; not measured without a GPU
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers

import headscope as hs
from benchmarks.scan import own_forward
from benchmarks.timing import interleaved, medians, ratio
from benchmarks.tiny import random_llama_bf16

LENGTHS = (4096, 32_768, 131_072)
LLAMA_8B = {"width": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "mlp": 14_336, "words": 128_256}


def model_of(shape: dict[str, int], length: int, device: str) -> transformers.LlamaForCausalLM:
    """Random weights, made on the device."""
    config = transformers.LlamaConfig(
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        intermediate_size=shape["mlp"],
        vocab_size=shape["words"],
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
    )
    return random_llama_bf16(config, device)


def prompt_of(length: int, words: int) -> np.ndarray:
    """[BOS, r, r, x, ...]: runs of at most 4,096 tokens, each twice."""
    random, parts = np.random.default_rng(0), [np.zeros(1, dtype=np.int64)]
    while sum(map(len, parts)) < length:
        run = random.integers(2, words, min(4096, length // 2))
        parts += [run, run]
    return np.concatenate(parts)[:length]


def peak(device: str, run: Callable[[], Any]) -> int | None:
    """Bytes allocated at the peak; None without a GPU."""
    if not device.startswith("cuda"):
        run()
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated()


def measure(*, device: str, shape: dict[str, int], lengths: Sequence[int], rounds: int) -> dict[str, Any]:
    """Everything, as one JSON-ready document."""
    hf = model_of(shape, max(lengths), device)
    model = hs.load(hf)

    def timed(run: Callable[[], Any]) -> Callable[[], None]:
        def wait() -> None:
            run()
            if device.startswith("cuda"):
                torch.cuda.synchronize()

        return wait

    rows = []
    for length in lengths:
        prompt = prompt_of(length, shape["words"])
        probe = hs.probe_tokens(prompt)
        forward = own_forward(hf.model, torch.from_numpy(prompt)[None].to(device))
        runs = {"forward": timed(forward), "scan": timed(lambda probe=probe: hs.scan(model, probe=probe))}
        seconds = interleaved(runs, rounds=rounds)
        peaks = {name: peak(device, run) for name, run in runs.items()}
        own, ours = peaks["forward"], peaks["scan"]
        rows.append(
            {
                "tokens": length,
                "time_ratio": round(ratio(seconds, "scan", "forward"), 3),
                "extra_memory": None if own is None or ours is None else round(ours / own - 1, 4),
                "median_s": medians(seconds),
                "peak_bytes": peaks,
            }
        )
    extra = [row["extra_memory"] for row in rows if row["extra_memory"] is not None]
    found: dict[str, Any] = {
        "schema": "headscope.benchmark.cuda/1",
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "kernel": model.check.kernels,
        "time_ratio": max(row["time_ratio"] for row in rows),
        "bars": {"time_ratio": 1.05},
        "rows": rows,
        "shape": shape,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if extra:
        found["extra_memory"] = max(extra)
        found["bars"]["extra_memory"] = 0.02
    return found


def main() -> None:
    """The command in this module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document, as it does anyhow")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=LLAMA_8B["layers"])
    parser.add_argument("--width", type=int, default=LLAMA_8B["width"])
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)), help="tokens, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("there is no CUDA device", file=sys.stderr)
        raise SystemExit(2)
    small = options.width // LLAMA_8B["heads"] < 64
    shape = LLAMA_8B | {"width": options.width, "layers": options.layers}
    if small:
        shape |= {"heads": 4, "kv_heads": 2, "mlp": 4 * options.width, "words": 1024}
    lengths = [int(one) for one in options.lengths.split(",")]
    print(json.dumps(measure(device=options.device, shape=shape, lengths=lengths, rounds=options.rounds), indent=1))


if __name__ == "__main__":
    main()
