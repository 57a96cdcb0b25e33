"""Verdicts and edges on models whose truth is known, how often random models raise an alarm, and what weights add.

python -m benchmarks.verdicts [--json] [--only planted,same,edges,random,weights]

planted   every case of `headscope.planted.misleading`: seeds in which every head has its right verdict
same      the same for models reparametrised exactly (`headscope.planted.reparametrised`)
edges     every wiring of `headscope.planted.wirings`: seeds in which exactly the right senders are named
random    random models in which `verify` calls a head induction, of 200; 5% at most
weights   on trained models, pairs that are not senders: how many of them would "agree" by z alone, and by z with the
          margin over every other head that is not a sender; and how many of the strongest senders agree
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

import headscope as hs
from headscope.evidence.circuit.result import RULE, Circuit
from headscope.evidence.composition.result import HeadPair
from headscope.heads import HeadId
from headscope.planted.misleading import CASES, Case, misleading
from headscope.planted.reparametrised import CHANGES, reparametrised
from headscope.planted.wirings import WIRINGS, Wired, Wiring, wired

CHECKED: tuple[tuple[Case, int], ...] = (*((case, 4) for case in CASES), ("busy_neighbour", 6))
"""Case and heads in a layer."""
ZOO = Path(__file__).parents[1] / "tests" / "lab" / "zoo"
TRAINED = ("demo", "copy-0", "copy-1", "copy-2", "gpt2", "gpt-neox", "llama")
SCALES = (0.02, 0.15, 0.5, 1.0)
"""Standard deviations of random weights: attention from even to sharp."""


def verified(model: Any, *, seed: int = 0) -> hs.Verification:
    """A model on six short prompts."""
    loaded = hs.load(model)
    return hs.verify(loaded, probe=hs.repeated_tokens(loaded, n_prompts=6, period=12, seed=seed), seed=seed)


def planted(case: Case, n_heads: int, seed: int) -> bool:
    """Whether every head of a planted case has its right verdict."""
    built = misleading(case, seed=seed, n_heads=n_heads)
    found = verified(built.model, seed=seed)
    return {head: found[head].verdict for head in built.verdicts} == dict(built.verdicts)


def same(case: Case, n_heads: int, seed: int) -> bool:
    """The same after every exact change of the weights, one by one."""
    built = misleading(case, seed=seed, n_heads=n_heads)
    for change in CHANGES:
        model, where = reparametrised(built.model, change, seed=seed)
        found = verified(model, seed=seed)
        if any(found[where[head]].verdict != verdict for head, verdict in built.verdicts.items()):
            return False
    return True


def circuit_of(model: Any, receiver: HeadId, *, n_prompts: int = 8) -> Circuit:
    """The circuit of one receiver on short prompts."""
    loaded = hs.load(model)
    probe = hs.repeated_tokens(loaded, n_prompts=n_prompts, period=8, bos=True)
    return hs.trace_circuit(loaded, [receiver], probe=probe)


def expected(truth: Wired, wiring: Wiring) -> set[tuple[HeadId, str, str]]:
    """Sender, input and changed token of every edge of a wiring."""
    match wiring:
        case "one" | "two" | "three":
            return {(head, "k", "before_key") for head in truth.previous_token}
        case "two_token":
            (before,), (two_back,) = truth.previous_token, truth.two_back
            return {(before, "k", "before_key"), (two_back, "k", "two_before_key"), (before, "q", "before_query")}
        case "pointer":
            return {(head, "q", "before_key") for head in truth.duplicate_token}
        case "one_further":
            return {(head, "k", "before_key") for head in truth.two_back}


def edges(wiring: Wiring, seed: int) -> bool:
    """Whether exactly the right senders are named, and as a set where they replace each other."""
    truth = wired(wiring, seed=seed)
    found = circuit_of(truth.model, truth.receiver)
    named = {(edge.sender, edge.input, edge.changed) for edge in (*found.edges, *found.context)}
    sets = [some.senders for some in found.sets]
    return named == expected(truth, wiring) and sets == ([truth.previous_token] if wiring in ("two", "three") else [])


def random_model(seed: int) -> GPT2LMHeadModel | LlamaForCausalLM:
    """Random weights: GPT-2's and Llama's by turns, attention from even to sharp."""
    torch.manual_seed(seed)
    common: dict[str, Any] = dict(
        vocab_size=128, bos_token_id=0, eos_token_id=0, initializer_range=SCALES[seed // 2 % len(SCALES)]
    )
    if seed % 2:
        shape: dict[str, Any] = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        config = LlamaConfig(**common, **shape, num_key_value_heads=2, max_position_embeddings=128)
        return LlamaForCausalLM(config).eval()
    return GPT2LMHeadModel(GPT2Config(**common, n_positions=128, n_embd=32, n_layer=2, n_head=4)).eval()


def alarm(seed: int) -> bool:
    """Whether a random model has a head that is called induction."""
    model = hs.load(random_model(seed))
    found = hs.verify(model, probe=hs.repeated_tokens(model, n_prompts=4, period=12, seed=seed), seed=seed)
    return bool(found.sets)


def weights(name: str) -> dict[str, Any]:
    """Pairs into the induction heads of a trained model that are not senders, and how many would agree.

    Of each such head twice: as the only one named, beside which every other head counts, the senders too; and named
    with the senders, so that only the others count.
    """
    model = hs.load(name) if name == "demo" else hs.load(ZOO / name, dtype="float32")
    probe = hs.repeated_tokens(model, n_prompts=16, period=24)
    found = hs.trace_circuit(model, verification=hs.verify(model, probe=probe), probe=probe)
    scores = hs.composition(model, kinds=["k"])
    counted = dict.fromkeys(["receivers", "senders_agree", "pairs", "by_z", "alone", "beside_senders"], 0)
    margins: dict[str, list[float]] = {"of_senders": [], "of_others": []}
    for one in found.receivers:
        named = [edge for edge in found.edges if (edge.receiver, edge.input) == (one.head, "k")]
        ranked = scores.ranked(one.head, "k")
        rest = [pair for pair in ranked if pair.sender not in {edge.sender for edge in named}]
        counted["receivers"] += bool(named)
        counted["senders_agree"] += bool(one.weights_agree)
        counted["pairs"] += len(rest)
        if named and named[0].weights is not None and named[0].weights.margin is not None:
            margins["of_senders"].append(round(named[0].weights.margin, 2))
        margins["of_others"].append(round(max((_margin(pair, rest) for pair in rest), default=0.0), 2))
        for pair in rest:
            clear = pair.z is not None and pair.z >= RULE.z
            counted["by_z"] += clear
            counted["alone"] += clear and _margin(pair, ranked) >= RULE.margin
            counted["beside_senders"] += clear and _margin(pair, rest) >= RULE.margin
    return counted | {"margins": margins}


def _margin(pair: HeadPair, among: Sequence[HeadPair]) -> float:
    """Its score over the largest of the others; 0 where there is none."""
    others = max((other.score for other in among if other is not pair), default=0.0)
    return pair.score / others if others > 0 else 0.0


def right(measure: Callable[..., bool], cases: Mapping[str, tuple[Any, ...]], seeds: int) -> dict[str, Any]:
    """For each case, in how many seeds it came out right."""
    return {name: sum(measure(*case, seed) for seed in range(seeds)) for name, case in cases.items()} | {"of": seeds}


def main() -> None:
    """The command in this module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seeds", type=int, default=20, help="of every planted model (default 20)")
    parser.add_argument("--models", type=int, default=200, help="random models (default 200)")
    parser.add_argument("--only", default="planted,same,edges,random,weights", help="parts, with commas between")
    given = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    cases = {case if n == 4 else f"{case}, {n} heads": (case, n) for case, n in CHECKED}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "planted": lambda: right(planted, cases, given.seeds),
        "same": lambda: right(same, cases, max(1, given.seeds // 4)),
        "edges": lambda: right(edges, {wiring: (wiring,) for wiring in WIRINGS}, given.seeds),
        "random": lambda: {"alarms": sum(map(alarm, range(given.models))), "of": given.models},
        "weights": lambda: {name: weights(name) for name in TRAINED},
    }
    document: dict[str, Any] = {}
    for name in given.only.split(","):
        document[name] = parts[name]()
        if not given.json:
            print(name, json.dumps(document[name], indent=1), flush=True)
    if given.json:
        print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
