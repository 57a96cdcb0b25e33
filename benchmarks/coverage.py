"""How often 95% intervals hold the true value, head by head, on trained models.

    python -m benchmarks.coverage [--json] [--prompts 600] [--redraws 2000] [--only scan,verify]

Every prompt of a pool is measured once. An experiment draws as many of them, with replacement, as the command reads by
default: independent draws from the pool, whose mean is the truth. `mean` is over what is measured of all models,
`worst` is the least of any. The sampling error of one coverage is sqrt(0.95 * 0.05 / redraws), 0.005 for 2,000.

    scan        every score, and what it exceeds its control by: every head and role, 32 prompts
    verify      the change of the second copy's loss without each head, 32 prompts
    circuit     of each edge that is found, `effect` and `loss_nats`; of each receiver its stripes and
                what is `restored`; 32 prompts
    behavior    what removing each head takes of the effect of a claim, 48 facts of the built-in ones
    emergence   step and width of a rise of known step and width, three widths, with the scatter of checkpoints equal
                along the curve or largest inside the rise

What hardly ever varies in a pool has no coverage that 32 of its prompts could give: a mean made by less than one prompt
in twenty is counted apart, as `rare`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

import headscope as hs
from headscope.evidence.behavior.measure import Bench, Meter
from headscope.evidence.behavior.sets import wrong_facts
from headscope.evidence.circuit.measure import N_PROMPTS as TWINS
from headscope.evidence.circuit.measure import PERIOD
from headscope.evidence.emergence.change import TENTHS, phase_change
from headscope.evidence.scan.measure import RESOLUTION, prompt_scores
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, losses
from headscope.interventions.paths import INPUTS, Paths
from headscope.probes.copies import copies
from headscope.probes.pairs import read_pairs
from headscope.probes.repeated import N_PROMPTS
from headscope.probes.twins import twins
from headscope.stats import mean_intervals, ratio_interval

ZOO = Path(__file__).parents[1] / "tests" / "lab" / "zoo"
MODELS = ("demo", "copy-0", "llama", "gpt-neox", "gpt2")
"""All trained."""
READERS = ("demo", "llama", "gpt-neox", "gpt2")
"""Those with a tokenizer."""
FACTS = 48

Measured = Callable[[hs.Model], tuple[np.ndarray, np.ndarray]]
"""[thing] coverage, and whether it is rare."""


def opened(name: str) -> hs.Model:
    """One of the trained models."""
    return hs.load("demo" if name == "demo" else ZOO / name, dtype="float32")


def held(pool: np.ndarray, n: int, redraws: int, *, least: float = 0.0, seed: int = 0) -> np.ndarray:
    """[thing]: the share of redraws of n rows of the pool [row, thing] whose interval holds the pool's mean."""
    random, truth = np.random.default_rng(seed), pool.mean(axis=0)
    found, size = np.zeros(pool.shape[1]), max(1, 4_000_000 // (n * pool.shape[1]))
    for first in range(0, redraws, size):
        drawn = random.integers(len(pool), size=(n, min(size, redraws - first)))
        mean, ends = mean_intervals(pool[drawn])
        assert ends is not None, "one row has no interval"
        found += ((np.minimum(ends[0], mean - least) <= truth) & (truth <= np.maximum(ends[1], mean + least))).sum(0)
    return found / redraws


def held_ratio(parts: np.ndarray, n: int, redraws: int, *, seed: int = 0) -> float:
    """The same for the ratio of the means of two columns."""
    random, (above, below) = np.random.default_rng(seed), parts.mean(axis=0)
    found = 0
    for _ in range(redraws):
        drawn = parts[random.integers(len(parts), size=n)]
        _, ends = ratio_interval(drawn[:, 0], drawn[:, 1])
        found += ends is None or ends[0] <= above / below <= ends[1]
    return found / redraws


def rare(pool: np.ndarray) -> np.ndarray:
    """[thing]: whether less than one row in twenty makes nine tenths of the squares about the mean."""
    squares = np.sort((pool - pool.mean(axis=0)) ** 2, axis=0)[::-1]
    return squares[: len(pool) // 20].sum(0) >= 0.9 * squares.sum(0)


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


def circuit_pools(model: hs.Model, prompts: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """[prompt, thing] of stripes, effects and losses, and [prompt, 2] of what each receiver restores, and the most."""
    first = min(model.check.heads)
    receivers = [one.head for one in hs.scan(model).heads("induction") if one.head.layer > first]
    edges = [edge for edge in hs.trace_circuit(model, receivers).edges if not edge.any_of] if receivers else []
    if not edges:
        return np.empty((prompts, 0)), []
    paths = Paths(model, twins(hs.repeated_tokens(model, n_prompts=prompts, period=PERIOD, seed=20)), receivers)
    clean, corrupt = (dict(zip(receivers, paths.stripe(run), strict=True)) for run in (paths.clean, paths.corrupt))
    senders = sorted({edge.sender for edge in edges})
    contents = paths.contents(paths.clean, paths.corrupt, [frozenset([one]) for one in senders])
    means, ratios, untouched = [*clean.values(), *corrupt.values()], list[np.ndarray](), paths.loss(paths.clean)
    for head in dict.fromkeys(edge.receiver for edge in edges):
        own = [edge for edge in edges if edge.receiver == head]
        for edge in own:
            row = senders.index(edge.sender)
            given = {name: contents[head][name][row : row + 1] for name in INPUTS}
            means.append(clean[head] - paths.patched(paths.clean, head, edge.input, given[edge.input])[0])
            means += list(paths.losses(paths.clean, [(head, name, given[name][0]) for name in INPUTS]) - untouched)
        together = paths.contents(paths.corrupt, paths.clean, [frozenset(edge.sender for edge in own)])[head]
        restored = paths.replaced(paths.corrupt, head, {edge.input: together[edge.input] for edge in own})[0]
        ratios.append(np.stack([restored - corrupt[head], clean[head] - corrupt[head]], axis=1))
    return np.stack(means, axis=1), ratios


def circuit(model: hs.Model, prompts: int, redraws: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of everything of `circuit_pools`, and what of it is rare."""
    means, ratios = circuit_pools(model, prompts)
    means = means[:, means.std(axis=0) > 0]
    shares = [held_ratio(one, TWINS, redraws) for one in ratios]
    return np.append(held(means, TWINS, redraws), shares), np.append(rare(means), np.zeros(len(ratios), bool))


def behavior_pool(model: hs.Model) -> np.ndarray:
    """[fact, head]: what removing the head takes of the effect."""
    bench = Bench(model, read_pairs(model, wrong_facts()), Meter(0))
    ablator = Ablator(model=model, method="zero", corpus=None, positions=None, seed=0)
    everyone = np.arange(len(bench.pairs))
    found = bench.ablated(ablator, everyone, every(model), "")
    return bench.by_fact(bench.removed(found, everyone), everyone).T


def of_rows(measure: Callable[[hs.Model], np.ndarray], n: int, redraws: int, least: float = 0.0) -> Measured:
    """Coverage of the means of all that a pool holds, and what of it is rare."""

    def found(model: hs.Model) -> tuple[np.ndarray, np.ndarray]:
        pool = measure(model)
        pool = pool[:, pool.std(axis=0) > 0]
        return held(pool, n, redraws, least=least), rare(pool)

    return found


def emergence(redraws: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of step and width, for rises of three widths, and scatter that is equal or largest inside the rise."""
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
    return np.concatenate(rows), np.zeros(2 * len(rows), bool)


def summary(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float | int]:
    """Mean and worst of all, and the worst of what is not rare."""
    covered, seldom = (np.concatenate(some) for some in zip(*parts, strict=True))
    return {
        "mean": float(covered.mean()),
        "worst": float(covered.min()),
        "worst_not_rare": float(covered[~seldom].min()),
        "rare": int(seldom.sum()),
        "of": len(covered),
    }


def main() -> None:
    """The command in this module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--prompts", type=int, default=600, help="prompts of each pool")
    parser.add_argument("--redraws", type=int, default=2000, help="experiments")
    parser.add_argument("--only", default="scan,verify,circuit,behavior,emergence", help="kinds, with commas between")
    given = parser.parse_args()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    prompts, redraws = given.prompts, given.redraws
    on_models: dict[str, tuple[tuple[str, ...], Measured]] = {
        "scan": (MODELS, of_rows(lambda one: scan_pool(one, prompts), N_PROMPTS, redraws, RESOLUTION)),
        "verify": (MODELS, of_rows(lambda one: verify_pool(one, prompts), N_PROMPTS, redraws)),
        "circuit": (MODELS, lambda one: circuit(one, prompts, redraws)),
        "behavior": (READERS, of_rows(behavior_pool, FACTS, redraws)),
    }
    document: dict[str, Any] = {"bars": {}, "floors": {}}
    for kind in given.only.split(","):
        if kind == "emergence":
            parts = {"curves": emergence(max(1, redraws // 10))}
        else:
            names, measure = on_models[kind]
            parts = {name: measure(opened(name)) for name in names}
        parts = {name: one for name, one in parts.items() if len(one[0])}
        found = summary(list(parts.values()))
        document[kind] = found | {"by_model": {name: summary([one]) for name, one in parts.items()}}
        document |= {f"{kind}_mean": found["mean"], f"{kind}_worst": found["worst"]}
        document["floors"] |= {f"{kind}_mean": 0.93, f"{kind}_worst": 0.88}
        document["bars"] |= {f"{kind}_mean": 0.97}
        if not given.json:
            print(
                f"{kind:10s} mean {found['mean']:.3f}  worst {found['worst']:.3f}  of {found['of']}; "
                f"without {found['rare']} rare {found['worst_not_rare']:.3f}",
                flush=True,
            )
    if given.json:
        print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
