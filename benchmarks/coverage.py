"""How often 95% intervals hold the true value, head by head, on trained models.

    python -m benchmarks.coverage [--json] [--prompts 600] [--redraws 2000] [--only scan,verify]

Every prompt of a pool is measured once. An experiment draws as many of them, with replacement, as the command reads by
default: independent draws from the pool, whose mean is the truth. `mean` is over what is measured of all models,
`worst` is the least of any. The sampling error of one coverage is sqrt(0.95 * 0.05 / redraws), 0.005 for 2,000.

    scan        every score, and what it exceeds its control by: every head and role, 32 prompts
    verify      the change of the second copy's loss without each head, 32 prompts; and with each stripe head alone of
                all of them, `put_back`, 8 prompts
    circuit     of each edge that is found, `effect` and `loss_nats`; of each receiver its stripes and what is
                `restored`; 128 prompts
    behavior    what removing each head takes of the effect of a claim, 48 facts of the built-in ones
    emergence   step and width of a rise of known step and width, three widths, with the scatter of checkpoints equal
                along the curve or largest inside the rise

Counted apart:

    rare        a mean made by less than one prompt in twenty: as few prompts as a command reads may all miss those
    resolved    what varies by more than the resolution that its interval has at least: 1.96 standard errors are wider.
                An interval as wide as the resolution holds the truth always, or nearly
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

import headscope as hs
from headscope.evidence.behavior.measure import RESOLUTION as EFFECT_RESOLUTION
from headscope.evidence.behavior.measure import ContrastRunner, ForwardCounter
from headscope.evidence.behavior.sets import wrong_facts
from headscope.evidence.circuit.measure import N_PROMPTS as PAIRS
from headscope.evidence.circuit.measure import PERIOD, SEARCH_PROMPTS
from headscope.evidence.circuit.tracing import EDGE_LOSS_RESOLUTION
from headscope.evidence.emergence.change import TENTHS, phase_change
from headscope.evidence.scan.measure import RESOLUTION, prompt_scores
from headscope.evidence.verify.trial import FEW_PROMPTS
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator, losses
from headscope.interventions.paths import INPUTS, Paths
from headscope.probes.copies import copies
from headscope.probes.corrupt import corrupt_pairs
from headscope.probes.pairs import read_pairs
from headscope.probes.repeated import N_PROMPTS
from headscope.stats import LOSS_RESOLUTION, mean_intervals

ZOO = Path(__file__).parents[1] / "tests" / "lab" / "zoo"
MODELS = ("demo", "copy-0", "llama", "gpt-neox", "gpt2")
"""All trained."""
READERS = ("demo", "llama", "gpt-neox", "gpt2")
"""Those with a tokenizer."""
FACTS = 48


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """What was measured once in every prompt."""

    rows: np.ndarray
    """[prompt, thing]"""
    of: str
    """Which quantity."""
    n: int
    """Prompts that the command reads."""
    least: float = 0.0
    """The intervals' resolution."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coverage:
    """Of some things."""

    covered: np.ndarray
    rare: np.ndarray
    resolved: np.ndarray

    @classmethod
    def of(cls, pool: Pool, redraws: int) -> Coverage:
        """Of everything in a pool that varies."""
        spread = pool.rows.std(axis=0)
        rows, spread = pool.rows[:, spread > 0], spread[spread > 0]
        return cls(
            covered=held(rows, pool.n, redraws, least=pool.least),
            rare=rare(rows),
            resolved=1.96 * spread / math.sqrt(pool.n) > pool.least,
        )

    @classmethod
    def all(cls, parts: Sequence[Coverage]) -> Coverage:
        """Of several together."""
        return cls(
            covered=np.concatenate([one.covered for one in parts]),
            rare=np.concatenate([one.rare for one in parts]),
            resolved=np.concatenate([one.resolved for one in parts]),
        )

    def summary(self) -> dict[str, float | int]:
        """Mean and worst of all; the worst of what is not rare, the mean of what is resolved."""
        return {
            "mean": float(self.covered.mean()),
            "worst": float(self.covered.min()),
            "of": len(self.covered),
            "rare": int(self.rare.sum()),
            "worst_not_rare": float(self.covered[~self.rare].min(initial=1.0)),
            "resolved": int(self.resolved.sum()),
            "mean_resolved": float(self.covered[self.resolved].mean()) if self.resolved.any() else 1.0,
        }


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


def rare(pool: np.ndarray) -> np.ndarray:
    """[thing]: whether less than one row in twenty makes nine tenths of the squares about the mean."""
    squares = np.sort((pool - pool.mean(axis=0)) ** 2, axis=0)[::-1]
    return squares[: len(pool) // 20].sum(0) >= 0.9 * squares.sum(0)


def scan_pool(model: hs.Model, prompts: int) -> list[Pool]:
    """Scores and selectivities."""
    scores, controls = prompt_scores(model, hs.repeated_tokens(model, n_prompts=prompts, seed=20))
    parts = {"score": scores, "selectivity": scores - controls}
    return [
        Pool(rows=rows.reshape(prompts, -1), of=name, n=N_PROMPTS, least=RESOLUTION) for name, rows in parts.items()
    ]


def every(model: hs.Model) -> list[frozenset[HeadId]]:
    """Each head alone."""
    return [frozenset([head]) for head in model.heads]


def verify_pool(model: hs.Model, prompts: int) -> list[Pool]:
    """The change of the second copy's loss without each head, and with each stripe head alone of them all."""
    probe = hs.repeated_tokens(model, n_prompts=prompts, seed=20)
    ablator = Ablator.of(model, probe, method="mean", corpus=None, positions=None, seed=0)
    queries = {"second_copy": [copies(prompt).second for prompt in probe.prompts]}
    singles, stripes = every(model), frozenset(one.head for one in hs.scan(model).heads("induction"))
    worlds = [frozenset(), *singles, stripes, *(stripes - {head} for head in sorted(stripes))]
    found = losses(ablator, probe.prompts, queries, worlds)["second_copy"]
    clean, removed, (without, *alone) = found[0], found[1 : 1 + len(singles)], found[1 + len(singles) :]
    pools = [Pool(rows=(removed - clean).T, of="delta_loss_nats", n=N_PROMPTS, least=LOSS_RESOLUTION)]
    if len(stripes) > 1:
        pools.append(Pool(rows=(without - alone).T, of="put_back", n=FEW_PROMPTS, least=LOSS_RESOLUTION))
    return pools


def circuit_pool(model: hs.Model, prompts: int) -> list[Pool]:
    """Stripes, effects and losses of the edges that are found, and what each receiver restores.

    The interval of a ratio A / B holds r where that of the mean of a - r b holds zero
    (`headscope.stats.ratio_interval`), so the rows of `restored` are a - R b, R the pool's ratio.
    """
    first = min(model.check.heads)
    receivers = [one.head for one in hs.scan(model).heads("induction") if one.head.layer > first]
    few = hs.repeated_tokens(model, n_prompts=SEARCH_PROMPTS, period=PERIOD)
    edges = [edge for edge in hs.trace_circuit(model, receivers, probe=few).edges if not edge.any_of]
    paths = Paths(model, corrupt_pairs(hs.repeated_tokens(model, n_prompts=prompts, period=PERIOD, seed=20)), receivers)
    clean, corrupt = (dict(zip(receivers, paths.stripe(run), strict=True)) for run in (paths.clean, paths.corrupt))
    senders = sorted({edge.sender for edge in edges})
    contents = paths.contents(paths.clean, paths.corrupt, [frozenset([one]) for one in senders])
    untouched = paths.loss(paths.clean)
    found: dict[str, list[np.ndarray]] = {"stripe": [*clean.values(), *corrupt.values()]}
    for head in dict.fromkeys(edge.receiver for edge in edges):
        own = [edge for edge in edges if edge.receiver == head]
        for edge in own:
            row = senders.index(edge.sender)
            given = {name: contents[head][name][row : row + 1] for name in INPUTS}
            left = paths.patched(paths.clean, head, edge.input, given[edge.input])[0]
            found.setdefault("effect", []).append(clean[head] - left)
            losses_of = paths.losses(paths.clean, [(head, name, given[name][0]) for name in INPUTS])
            found.setdefault("loss_nats", []).extend(losses_of - untouched)
        together = paths.contents(paths.corrupt, paths.clean, [frozenset(edge.sender for edge in own)])[head]
        restored = paths.replaced(paths.corrupt, head, {edge.input: together[edge.input] for edge in own})[0]
        gained, most = restored - corrupt[head], clean[head] - corrupt[head]
        found.setdefault("restored", []).append(gained - gained.mean() / most.mean() * most)
    least = {"loss_nats": EDGE_LOSS_RESOLUTION}
    return [
        Pool(rows=np.stack(rows, axis=1), of=name, n=PAIRS, least=least.get(name, 0.0)) for name, rows in found.items()
    ]


def behavior_pool(model: hs.Model) -> list[Pool]:
    """What removing each head takes of the effect of each fact."""
    runner = ContrastRunner(model, read_pairs(model, wrong_facts()), ForwardCounter(0))
    ablator = Ablator(model=model, method="zero", corpus=None, positions=None, seed=0)
    everyone = np.arange(len(runner.pairs))
    found = runner.ablated(ablator, everyone, every(model), "")
    return [
        Pool(
            rows=runner.by_fact(runner.removed(found, everyone), everyone).T,
            of="removed",
            n=FACTS,
            least=EFFECT_RESOLUTION,
        )
    ]


def emergence(redraws: int) -> dict[str, Coverage]:
    """Of step and width, for rises of three widths, and scatter that is equal or largest inside the rise."""
    random, steps, found = np.random.default_rng(0), np.arange(0, 1201, 50), dict[str, Coverage]()
    for width in (300, 150, 75):
        share = 1 / (1 + np.exp(-(steps - 610) / (width / TENTHS)))
        scatters = {"equal": np.full(len(steps), 0.02), "inside": 0.005 + 0.1 * np.sqrt(4 * share * (1 - share))}
        for where, scatter in scatters.items():
            inside = np.zeros(2)
            for _ in range(redraws):
                rise = phase_change(steps, 0.03 + 0.9 * share + scatter * random.normal(size=len(steps))).found
                for number, true in enumerate((610, width)):
                    ends = None if rise is None else (rise.step, rise.width)[number].ci95
                    inside[number] += ends is not None and ends[0] <= true <= ends[1]
            neither = np.zeros(2, bool)
            found[f"{width}, {where}"] = Coverage(covered=inside / redraws, rare=neither, resolved=~neither)
    return found


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
    on_models: dict[str, tuple[tuple[str, ...], Callable[[hs.Model], list[Pool]]]] = {
        "scan": (MODELS, lambda model: scan_pool(model, prompts)),
        "verify": (MODELS, lambda model: verify_pool(model, prompts)),
        "circuit": (MODELS, lambda model: circuit_pool(model, prompts)),
        "behavior": (READERS, behavior_pool),
    }
    document: dict[str, Any] = {"bars": {}, "floors": {}}
    for kind in given.only.split(","):
        by_model, by_quantity = dict[str, list[Coverage]](), dict[str, list[Coverage]]()
        if kind == "emergence":
            by_model = {name: [one] for name, one in emergence(max(1, redraws // 10)).items()}
        else:
            names, measure = on_models[kind]
            for name in names:
                for pool in measure(opened(name)):
                    found = Coverage.of(pool, redraws)
                    by_model.setdefault(name, []).append(found)
                    by_quantity.setdefault(pool.of, []).append(found)
        whole = Coverage.all([one for parts in by_model.values() for one in parts]).summary()
        document[kind] = whole | {
            of: {name: Coverage.all(parts).summary() for name, parts in some.items()}
            for of, some in (("by_model", by_model), ("by_quantity", by_quantity))
        }
        document |= {f"{kind}_mean": whole["mean"], f"{kind}_worst": whole["worst"]}
        document["floors"] |= {f"{kind}_mean": 0.93, f"{kind}_worst": 0.88}
        document["bars"] |= {f"{kind}_mean": 0.97}
        if not given.json:
            for label, one in (
                (kind, whole),
                *document[kind]["by_model"].items(),
                *document[kind]["by_quantity"].items(),
            ):
                print(
                    f"{label:16s} mean {one['mean']:.3f}  worst {one['worst']:.3f}  of {one['of']:3d};  "
                    f"{one['resolved']:3d} resolved: mean {one['mean_resolved']:.3f};  "
                    f"without {one['rare']:2d} rare: worst {one['worst_not_rare']:.3f}",
                    flush=True,
                )
    if given.json:
        print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
