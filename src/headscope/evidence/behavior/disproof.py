"""Tries to disprove a head set: random sets in its place, the induction heads, the set on other contrasts."""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float

from headscope.evidence.behavior.findings import DrawKind, DrawnSet, Induction, Other, SetFinding
from headscope.evidence.behavior.measure import ContrastRunner, Index, of_effect
from headscope.evidence.copying import TokenSpace
from headscope.heads import HeadId
from headscope.interventions.ablation import Ablator
from headscope.records.common import Estimate

HELD_OUT_PAIRS = 48
"""Pairs that test the heads, at most."""
DRAW_PAIRS = 24
"""Of the held-out pairs, those in which random sets are tried."""
N_DRAWS = 5
"""Draws of random sets of each kind; none is tried twice."""
NEAREST = 3
"""A head of the same size is one of so many whose W_O is nearest in size."""
FEW = 8
"""Pairs of one sort that a statement about them needs."""
DRAW_KINDS: tuple[DrawKind, ...] = get_args(DrawKind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Disproof:
    """What a head set is compared with, on pairs that had no part in choosing it."""

    runner: ContrastRunner
    """The contrast that was searched."""
    ablator: Ablator
    """Of its heads."""
    circuits: TokenSpace | None
    """Weights by head; None where they cannot be assigned to heads."""
    heads: tuple[HeadId, ...]
    """All of the model."""
    induction: tuple[HeadId, ...]
    """Those with a stripe."""
    held_out: Index
    """Pairs that test."""
    random: np.random.Generator
    """Draws the sets."""

    def draws(self, head_set: tuple[HeadId, ...]) -> tuple[list[DrawnSet], Estimate | None]:
        """Random sets instead of the set, in some of the held-out pairs, and what the set itself removes there."""
        sets: list[tuple[DrawKind, tuple[HeadId, ...]]] = []
        for kind in DRAW_KINDS:
            for drawn in dict.fromkeys(self._drawn(kind, head_set) for _ in range(N_DRAWS)):
                if drawn is not None:
                    sets.append((kind, drawn))
        if not sets:
            return [], None
        runner, pairs = self.runner, self.held_out[:DRAW_PAIRS]
        worlds = [frozenset(head_set), *(frozenset(drawn) for _, drawn in sets)]
        found = runner.ablated(self.ablator, pairs, worlds, "random sets")
        own, *removed = runner.by_fact(runner.removed(found, pairs), pairs)
        _, *after = found["prompt"]
        draws = [
            DrawnSet(
                kind=kind, heads=drawn, removed=of_effect(gone), flips=flips(runner, left, pairs, runner.known[pairs])
            )
            for (kind, drawn), gone, left in zip(sets, removed, after, strict=True)
        ]
        return draws, of_effect(own)

    def _drawn(self, kind: DrawKind, head_set: tuple[HeadId, ...]) -> tuple[HeadId, ...] | None:
        """As many other heads; None where there are not enough of the kind."""
        drawn: list[HeadId] = []
        for head in head_set:
            pool = [one for one in self.heads if one not in head_set and one not in drawn]
            if kind == "same layers":
                pool = [one for one in pool if one.layer == head.layer]
            elif kind == "same size":
                if self.circuits is None:
                    return None
                own = self._size(head)
                pool = sorted(pool, key=lambda one: round(abs(math.log(self._size(one) / own)), 6))[:NEAREST]
            if not pool:
                return None
            drawn.append(pool[int(self.random.integers(len(pool)))])
        return tuple(sorted(drawn))

    def _size(self, head: HeadId) -> float:
        assert self.circuits is not None
        return max(float(self.circuits.layers[head.layer].w_o[head.head].norm()), 1e-12)

    def induction_heads(self, named: Sequence[HeadId]) -> Induction:
        """How many of the named heads are induction heads, and what the effect is without those."""
        runner, found = self.runner, self.induction
        common = tuple(head for head in named if head in found)
        pairs = np.asarray([one for one in self.held_out if runner.pairs[one].verbatim], dtype=int)
        patched = share = others_share = None
        if found and len(np.unique(runner.facts[pairs])) >= FEW and len(found) < len(self.heads):
            rest = [head for head in self.heads if head not in found]
            count = min(len(found), len(rest))
            draws = [self.random.permutation(len(rest))[:count] for _ in range(N_DRAWS)]
            worlds = [frozenset(found), *(frozenset(rest[int(one)] for one in draw) for draw in draws)]
            rows = runner.by_fact(runner.patched(pairs, worlds, "induction heads"), pairs)
            effect = runner.mean_effect(pairs)
            patched = of_effect(rows[0])
            if effect > 0:
                share, others_share = float(rows[0].mean()) / effect, float(rows[1:].mean()) / effect
        return Induction(
            heads=found,
            common=common,
            p_value=overlap_p(len(self.heads), len(found), len(named), len(common)),
            patched=patched,
            share=share,
            others_share=others_share,
        )

    def other(self, name: str, runner: ContrastRunner, head_set: SetFinding | None) -> Other:
        """The set on another contrast, in pairs of which none chose it."""
        everyone = np.arange(len(runner.pairs))
        removed = share = None
        if head_set is not None:
            pairs = np.sort(self.random.permutation(everyone)[:HELD_OUT_PAIRS])
            found = runner.ablated(self.ablator, pairs, [frozenset(head_set.heads)], "the other contrast")
            row, effect = runner.by_fact(runner.removed(found, pairs)[0], pairs), runner.mean_effect(pairs)
            removed, share = of_effect(row), float(row.mean()) / effect if effect > 0 else None
        return Other(name=name, score=runner.score(everyone), removed=removed, share=share)


def overlap_p(n_heads: int, n_induction: int, n_named: int, n_common: int) -> float:
    """P(at least so many in common) if the named heads were drawn at random: the hypergeometric tail."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(n_common - 1, n_heads, n_induction, n_named))


def flips(
    runner: ContrastRunner, differences: Float[np.ndarray, " chosen"], pairs: Index, known: np.ndarray
) -> Estimate | None:
    """Share of the known answers that are turned."""
    return runner.share((differences > 0)[known], pairs[known]) if known.any() else None
