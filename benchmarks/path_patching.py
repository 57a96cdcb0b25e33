"""One receiver's key patched from every earlier head, against the same by TransformerLens's hooks.

    python -m pip install -c constraints.txt -e ".[transformerlens]"
    python -m benchmarks.path_patching --json

Random weights of GPT-2 small's shape, 4 pairs of 101 tokens. For each of the 96 heads in the 8 layers below the
receiver: how much does L8H3's stripe change when that head alone writes what it writes in the corrupt prompt, every
other head keeps its output, MLPs recompute, and only the receiver's key reads the change? The stripe is nearly even
attention here; what is compared is the work and the numbers.

    transformerlens     for each sender two runs with hooks: z of all heads fixed, the key read; the key patched, the
                        pattern read. Both end at the receiver's layer; z of the pairs is cached once, and timed too
    headscope           `Paths`: layers below the sender are not run again, senders share batches, and the new
                        stripe is computed from the key, without a second run

`max_abs_diff` is the largest difference between the two over senders and pairs; `effect` the largest change of a stripe
by any sender, so that the agreement is of numbers that move.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import transformers

import headscope as hs
from benchmarks.composition import bridge, gpt2_small
from benchmarks.timing import interleaved, medians, ratio
from headscope.interventions.paths import Paths
from headscope.probes.corrupt import corrupt_pairs

RECEIVER = hs.HeadId(8, 3)


def measure(rounds: int) -> dict[str, Any]:
    """Everything, as one JSON-ready document."""
    hf = gpt2_small()
    model = hs.load(hf)
    pairs = corrupt_pairs(hs.repeated_tokens(model, n_prompts=4, period=50, jitter=False))
    senders = [hs.HeadId(layer, head) for layer in range(RECEIVER.layer) for head in range(12)]
    theirs = bridge(copy.deepcopy(hf), compatible=False)
    kept: dict[str, np.ndarray] = {}

    def headscope() -> None:
        paths = Paths(model, pairs, [RECEIVER])
        reached = paths.contents(paths.clean, paths.corrupt, [frozenset({head}) for head in senders])
        kept["headscope"] = paths.patched(paths.clean, RECEIVER, "k", reached[RECEIVER]["k"])
        kept["clean"] = paths.stripe(paths.clean)

    rows = torch.arange(len(pairs))
    query = torch.tensor([one.query for one in pairs])
    key = torch.tensor([one.key for one in pairs])
    clean, corrupt = (
        torch.from_numpy(np.stack([getattr(one, name) for one in pairs])) for name in ("clean", "corrupt")
    )
    name_k, name_pattern = (f"blocks.{RECEIVER.layer}.attn.hook_{what}" for what in ("k", "pattern"))

    def transformerlens() -> None:
        stop = RECEIVER.layer + 1

        def cached(tokens: torch.Tensor) -> list[torch.Tensor]:
            _, cache = theirs.run_with_cache(
                tokens, names_filter=lambda name: name.endswith("hook_z"), stop_at_layer=stop
            )
            return [cache[f"blocks.{layer}.attn.hook_z"] for layer in range(RECEIVER.layer)]

        base, other = cached(clean), cached(corrupt)
        found = []
        for sender in senders:
            read: dict[str, torch.Tensor] = {}

            def hold(z: torch.Tensor, hook: Any, sender: hs.HeadId = sender) -> torch.Tensor:
                layer = int(hook.name.split(".")[1])
                held = base[layer].clone().reshape(*z.shape[:2], 12, -1)
                if layer == sender.layer:
                    held[:, :, sender.head] = other[layer].reshape(held.shape)[:, :, sender.head]
                return held.reshape(z.shape)

            def keep(k: torch.Tensor, hook: Any, read: dict[str, torch.Tensor] = read) -> None:
                read["k"] = k.reshape(*k.shape[:2], 12, -1)[rows, key, RECEIVER.head].clone()

            def put(k: torch.Tensor, hook: Any, read: dict[str, torch.Tensor] = read) -> torch.Tensor:
                changed = k.clone().reshape(*k.shape[:2], 12, -1)
                changed[rows, key, RECEIVER.head] = read["k"]
                return changed.reshape(k.shape)

            def look(pattern: torch.Tensor, hook: Any, read: dict[str, torch.Tensor] = read) -> None:
                read["stripe"] = pattern[rows, RECEIVER.head, query, key].clone()

            held = [(f"blocks.{layer}.attn.hook_z", hold) for layer in range(RECEIVER.layer)]
            theirs.run_with_hooks(clean, fwd_hooks=[*held, (name_k, keep)], stop_at_layer=stop)
            theirs.run_with_hooks(clean, fwd_hooks=[(name_k, put), (name_pattern, look)], stop_at_layer=stop)
            found.append(read["stripe"].numpy())
        kept["transformerlens"] = np.stack(found)

    with torch.no_grad():
        roads = {"headscope": headscope, "transformerlens": transformerlens}
        seconds = interleaved(roads, rounds=rounds, warm_up=False)  # each takes a minute, beside which that is nothing
    return {
        "schema": "headscope.benchmark.path_patching/1",
        "ratio": round(ratio(seconds, "headscope", "transformerlens"), 4),
        "max_abs_diff": float(np.abs(kept["headscope"] - kept["transformerlens"]).max()),
        "bars": {"max_abs_diff": 1e-6},
        "effect": float(np.abs(kept["headscope"] - kept["clean"]).max()),
        "senders": len(senders),
        "median_s": medians(seconds),
        "rounds": rounds,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            **{name: version(name) for name in ("torch", "transformers", "transformer-lens")},
        },
    }


def main() -> None:
    """Print the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document, as it does anyhow")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    options = parser.parse_args()
    if find_spec("transformer_lens") is None:
        print(
            'transformer_lens is not installed; python -m pip install -c constraints.txt -e ".[transformerlens]"',
            file=sys.stderr,
        )
        raise SystemExit(2)
    transformers.utils.logging.disable_progress_bar()
    print(json.dumps(measure(options.rounds), indent=1))


if __name__ == "__main__":
    main()
