"""How often 95% intervals hold the true value, head by head, on trained models.

    python -m benchmarks.coverage [--json] [--prompts 1000] [--redraws 400] [--only scan,verify]

Every prompt of a pool is measured once. An experiment draws as many of them, with replacement, as the command reads by
default; the truth is the mean over the pool. `mean` is over heads and models, `worst` is the least of any head; the
sampling error of one coverage is sqrt(0.95 * 0.05 / redraws), 0.011 for 400.

    scan        every score, and what it exceeds its control by: every head and role, 32 prompts
    verify      the change of the second copy's loss without each head, 32 prompts
    behavior    what removing each head takes of the effect of a claim, 48 facts of the built-in ones
    emergence   step and width of a rise of known step and width, with the scatter at four places along the curve

Not measured: `circuit`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers.utils import logging

import headscope as hs
from headscope.evidence.behavior.measure import Bench, Meter
from headscope.evidence.behavior.sets import wrong_facts
from headscope.evidence.emergence.change import TENTHS, phase_change
from headscope.evidence.scan.measure import RESOLUTION, prompt_scores
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, losses
from headscope.probes.copies import copies
from headscope.probes.pairs import read_pairs
from headscope.probes.repeated import N_PROMPTS
from headscope.stats import mean_intervals

ZOO = Path(__file__).parents[1] / "tests" / "lab" / "zoo"
MODELS = ("demo", "copy-0", "llama", "gpt-neox", "gpt2")
"""All trained."""
READERS = ("demo", "llama", "gpt-neox", "gpt2")
"""Those with a tokenizer."""
FACTS = 48


def opened(name: str) -> hs.Model:
    """One of the trained models."""
    return hs.load("demo" if name == "demo" else ZOO / name, dtype="float32")


def held(pool: np.ndarray, n: int, redraws: int, *, least: float = 0.0, seed: int = 0) -> np.ndarray:
    """[thing]: the share of redraws of n rows of the pool whose interval holds the pool's mean."""
    pool = pool[:, pool.std(axis=0) > 0]
    random, truth = np.random.default_rng(seed), pool.mean(axis=0)
    found = np.zeros(pool.shape[1])
    for _ in range(redraws):
        mean, ends = mean_intervals(pool[random.integers(len(pool), size=n)])
        assert ends is not None, "one row has no interval"
        found += (np.minimum(ends[0], mean - least) <= truth) & (truth <= np.maximum(ends[1], mean + least))
    return found / redraws


def scan_pool(model: hs.Model, prompts: int) -> np.ndarray:
    """[prompt, thing]: scores and selectivities."""
    scores, controls = prompt_scores(model, hs.repeated_tokens(model, n_prompts=prompts, seed=20))
    return np.concatenate([scores, scores - controls], axis=1).reshape(prompts, -1)


def every(model: hs.Model) -> list[frozenset[HeadId]]:
    """Each head alone."""
    return [frozenset([HeadId(layer, head)]) for layer, n in model.check.heads.items() for head in range(n)]


def verify_pool(model: hs.Model, prompts: int) -> np.ndarray:
    """[prompt, head]: the change of the second copy's loss."""
    probe = hs.repeated_tokens(model, n_prompts=prompts, seed=20)
    ablator = Ablator.of(model, probe, method="mean", corpus=None, positions=None, seed=0)
    queries = {"second_copy": [copies(prompt).second for prompt in probe.prompts]}
    found = losses(ablator, probe.prompts, queries, [frozenset(), *every(model)])["second_copy"]
    return (found[1:] - found[0]).T


def behavior_pool(model: hs.Model) -> np.ndarray:
    """[fact, head]: what removing the head takes of the effect."""
    bench = Bench(model, read_pairs(model, wrong_facts()), Meter(0))
    ablator = Ablator(model=model, method="zero", corpus=None, positions=None, seed=0)
    everyone = np.arange(len(bench.pairs))
    found = bench.ablated(ablator, everyone, every(model), "")
    return bench.by_fact(bench.removed(found, everyone), everyone).T


def emergence(redraws: int) -> np.ndarray:
    """Coverage of step and width, for rises of two widths and scatter on the levels or inside the rise."""
    random, steps, rows = np.random.default_rng(0), np.arange(0, 1201, 50), []
    for width in (300, 150, 75):
        share = 1 / (1 + np.exp(-(steps - 610) / (width / TENTHS)))
        for scatter in (np.full(len(steps), 0.02), 0.005 + 0.1 * np.sqrt(4 * share * (1 - share))):
            inside = np.zeros(2)
            for _ in range(redraws):
                found = phase_change(steps, 0.03 + 0.9 * share + scatter * random.normal(size=len(steps))).found
                for number, true in enumerate((610, width)):
                    ends = None if found is None else (found.step, found.width)[number].ci95
                    inside[number] += ends is not None and ends[0] <= true <= ends[1]
            rows.append(inside / redraws)
    return np.concatenate(rows)


def main() -> None:
    """The command in this module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--prompts", type=int, default=1000, help="prompts of each pool")
    parser.add_argument("--redraws", type=int, default=400, help="experiments")
    parser.add_argument("--only", default="scan,verify,behavior,emergence", help="kinds, with commas between")
    given = parser.parse_args()
    logging.disable_progress_bar()
    redraws = given.redraws
    on_models: dict[str, tuple[tuple[str, ...], Callable[[hs.Model], np.ndarray]]] = {
        "scan": (MODELS, lambda one: held(scan_pool(one, given.prompts), N_PROMPTS, redraws, least=RESOLUTION)),
        "verify": (MODELS, lambda one: held(verify_pool(one, given.prompts), N_PROMPTS, redraws)),
        "behavior": (READERS, lambda one: held(behavior_pool(one), FACTS, redraws)),
    }
    document = {}
    for kind in given.only.split(","):
        if kind == "emergence":
            parts = {"curves": emergence(max(1, redraws // 10))}
        else:
            names, measure = on_models[kind]
            parts = {name: measure(opened(name)) for name in names}
        everything = np.concatenate(list(parts.values()))
        document[kind] = {
            "mean": float(everything.mean()),
            "worst": float(everything.min()),
            "by_model": {name: {"mean": float(one.mean()), "worst": float(one.min())} for name, one in parts.items()},
        }
        if not given.json:
            print(f"{kind:10s} mean {document[kind]['mean']:.3f}  worst {document[kind]['worst']:.3f}", flush=True)
    if given.json:
        print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
