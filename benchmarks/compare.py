"""What a comparison finds: planted changes, false changes where nothing changed, number formats, and its cost.

python -m benchmarks.compare --seeds 20 --json

planted     one head of a hand-built model changed (`headscope.planted.changed`): is it found, and is any other called
            changed? `silenced` by the swap test, whose random heads are the control; `without_query`, `rotated` and
            `keys_adapted` by scores of attention. A LoRA of random directions may do nothing at any one size, so it is
            doubled until it takes at least 0.1 of the head's attention from its target, by the model's own code on
            other prompts; `power` says at which true changes it is found on the way there
unchanged   the model beside itself, and beside exact reparametrisations: heads called changed, and heads that the match
            sends elsewhere than they went
formats     the packaged model in float32 beside bfloat16, and beside weights rounded to 8 and 4 bits: heads called
            changed, the largest difference, and the bound on all
cost        one comparison of two models over the two scans apart, in turns, median of 9: processor time
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import GPT2LMHeadModel

import headscope as hs
from benchmarks.packed import quantised
from headscope.heads import HeadId
from headscope.planted.changed import keys_adapted, rotated, silenced, without_query
from headscope.planted.handbuilt import HandBuilt, handbuilt
from headscope.planted.reparametrised import CHANGES, reparametrised

SMALL: dict[str, Any] = {"n_prompts": 32, "period": 12}
"""As many prompts as the command reads, shorter ones."""
TAKEN = 0.1
"""Attention that a planted LoRA takes from the head's target, at least."""
MOST_SIZE = 2.0**12
"""Of a LoRA, in norms of the keys' weight."""
ROUNDS = 9
BARS = {
    "others_called_changed": 0,
    "false_changes": 0,
    "misplaced_heads": 0,
    "largest_share_of_random_heads": 0.05,
    "cost_over_two_scans": 1.1,
}
FLOORS = {"least_found_of_a_kind": 1.0, "least_share_of_the_planted_head": 0.9}


def model_of(seed: int) -> HandBuilt:
    """A small model whose heads are known."""
    return handbuilt(vocab_size=64, n_positions=64, n_digits=1, decoys=("duplicate_token", "positional"), seed=seed)


def stripe(model: GPT2LMHeadModel, head: HeadId, seed: int) -> float:
    """Attention after the earlier copy, by the model's own eager code, on prompts that no comparison here reads."""
    probe = hs.repeated_tokens(hs.load(model), n_prompts=32, period=SMALL["period"], seed=10_000 + seed)
    before = model.config._attn_implementation or "sdpa"
    model.set_attn_implementation("eager")
    tokens = torch.from_numpy(np.stack(probe.prompts))
    with torch.no_grad():
        attentions = model(tokens, output_attentions=True).attentions
    model.set_attn_implementation(before)
    assert attentions is not None
    values = [
        sum(float(attentions[head.layer][row, head.head, query, key + 1]) for key in earlier)
        for row, prompt in enumerate(probe.prompts)
        for query, token in enumerate(prompt)
        if (earlier := [key for key in range(query) if prompt[key] == token])
    ]
    return float(np.mean(values))


def compared(one: Any, other: Any, seed: int, **options: Any) -> Any:
    """The pair of two models."""
    return hs.compare(one, other, **SMALL, seed=seed, **options).pairs[0]


def planted(seeds: int) -> dict[str, Any]:
    """Changes of one head."""
    kinds: tuple[str, ...] = ("silenced", "without_query", "rotated", "keys_adapted")
    found: dict[str, int] = dict.fromkeys(kinds, 0)
    others = dict(found)
    random_share, least_share, power = 0.0, 1.0, []
    for seed in range(seeds):
        built = model_of(seed)
        model = built.model
        assert isinstance(model, GPT2LMHeadModel)
        (head,), (copier,) = built.heads("induction"), built.heads("duplicate_token")
        (sender,) = built.heads("previous_token")
        plans = {
            "without_query": (head, without_query(model, head)),
            "rotated": (copier, rotated(model, copier, sender.head)),
        }
        before, size, taken = stripe(model, head, seed), 1.0, 0.0
        while taken < TAKEN and size <= MOST_SIZE:
            adapted = keys_adapted(model, head, size=size, seed=seed)
            taken = before - stripe(adapted, head, seed)
            called = [one.head for one in compared(model, adapted, seed).changed]
            power.append({"size": size, "taken": round(taken, 4), "found": head in called})
            plans["keys_adapted"] = head, adapted
            size *= 2
        for kind, (which, changed) in plans.items():
            called = [one.head for one in compared(model, changed, seed).changed]
            found[kind] += which in called
            others[kind] += sum(one != which for one in called)
        swap = compared(model, silenced(model, head), seed, swap=True).swap
        sources = [] if swap is None or swap.sources is None else list(swap.sources.heads)
        found["silenced"] += head in sources
        others["silenced"] += sum(one != head for one in sources)
        if swap is not None:
            random_share = max(
                [random_share, *(abs(part.mean) for one in swap.random for part in (one.restores, one.transfers))]
            )
        if swap is not None and swap.sources is not None:
            least_share = min(least_share, swap.sources.restores.mean, swap.sources.transfers.mean)
    return {
        "seeds": seeds,
        "planted_found": found,
        "other_heads_called_changed": others,
        "least_share_of_the_planted_head": least_share,
        "largest_share_of_random_heads": random_share,
        "power_of_keys_adapted": binned(power),
    }


def binned(power: list[dict[str, Any]]) -> dict[str, str]:
    """Of LoRAs by the attention that they took: found, of how many."""
    ends = (-1.0, 0.01, 0.02, 0.04, TAKEN, 1.01)
    counts = {}
    for low, high in pairwise(ends):
        inside = [one["found"] for one in power if low <= one["taken"] < high]
        counts[f"{max(0.0, low):g} to {min(1.0, high):g}"] = f"{sum(inside)} of {len(inside)}"
    return counts


def unchanged(seeds: int) -> dict[str, Any]:
    """The same function, with other weights."""
    changes, comparisons, misplaced = 0, 0, 0
    for seed in range(seeds):
        built = model_of(seed)
        same = [(built.model, {one: one for one in built.roles})]
        assert isinstance(built.model, GPT2LMHeadModel)
        same += [reparametrised(built.model, change, seed=seed) for change in CHANGES]
        for other, where in same:
            pair = compared(built.model, other, seed)
            changes += len(pair.changed)
            misplaced += sum(one.match is not None and one.counterpart != where[one.head] for one in pair.heads)
            comparisons += 1
    return {"unchanged_comparisons": comparisons, "false_changes": changes, "misplaced_heads": misplaced}


def formats() -> dict[str, Any]:
    """The packaged model in fewer bits."""
    wide = hs.load("demo", dtype="float32")
    others = {
        "bfloat16": hs.load("demo", dtype="bfloat16"),
        "int8_by_row": hs.load(quantised(copy.deepcopy(wide.hf))),
        "int4_by_32": hs.load(quantised(copy.deepcopy(wide.hf), bits=4, group=32)),
    }
    found = {}
    for name, narrow in others.items():
        pair = hs.compare(wide, narrow).pairs[0]
        largest = max(abs(role.difference.mean) for head in pair.heads for role in head.roles)
        found[name] = {
            "heads_called_changed": [str(one.head) for one in pair.changed],
            "largest_difference": round(largest, 4),
            "bound": None if pair.bound is None else round(pair.bound, 4),
            "finding": pair.finding,
        }
    return found


def cost() -> float:
    """Processor time of a comparison, over that of both scans."""
    model = hs.load("demo", dtype="float32")

    def spent(run: Any) -> float:
        started = time.process_time()
        run()
        return time.process_time() - started

    def apart() -> None:
        hs.scan(model)
        hs.scan(model)

    spent(lambda: hs.compare(model, model))
    rounds = [(spent(apart), spent(lambda: hs.compare(model, model))) for _ in range(ROUNDS)]
    return round(statistics.median(together / alone for alone, together in rounds), 3)


def measure(seeds: int) -> dict[str, Any]:
    """Everything, as one document."""
    ratio = cost()
    found = planted(seeds)
    return {
        "schema": "headscope.benchmark.compare/1",
        **found,
        "least_found_of_a_kind": min(found["planted_found"].values()) / seeds,
        "others_called_changed": sum(found["other_heads_called_changed"].values()),
        **unchanged(seeds),
        "formats": formats(),
        "cost_over_two_scans": ratio,
        "bars": BARS,
        "floors": FLOORS,
    }


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--n-prompts", type=int, default=SMALL["n_prompts"], help="of the hand-built models")
    options = parser.parse_args()
    SMALL["n_prompts"] = options.n_prompts
    document = measure(options.seeds)
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        for name, value in document.items():
            print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
