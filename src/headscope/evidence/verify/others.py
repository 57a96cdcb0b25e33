"""Controls: the other heads of a layer, and random heads for a set.

The effect of a head is compared with the median over all other heads of its layer without a part of a stripe: what
removing an arbitrary head there does to the second copy, beyond the first. Some of them may matter as much, for their
own reasons, and a median of three or more is not moved by one. Neither a seed nor the scale of any weight decides.

Random heads beside a set are drawn from its layers, each one of the three whose `W_V W_O` is nearest in size to a head
of the set. They are shown, and no part of the rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from headscope.evidence.copying import TokenSpace
from headscope.evidence.verify.trial import FEW_PROMPTS, FIRST_PROMPTS, Trial
from headscope.heads import HeadId
from headscope.model.load import Model
from headscope.model.precision import widened
from headscope.records.common import Estimate

N_DRAWS = 5
"""Draws of matched random heads, for the set."""
NEAREST = 3
"""A matched head is one of so many whose W_V W_O is nearest in size."""
LEAST_OTHERS = 3
"""Other heads whose median says something: one of them may matter."""


def others_of(
    stripes: Sequence[HeadId], excluded: Sequence[HeadId], heads: Sequence[HeadId]
) -> dict[HeadId, list[HeadId]]:
    """For each stripe head the other heads of its layer without a part of a stripe; none where there are too few."""
    pools = {
        head: [one for one in heads if (one.layer, one.call) == (head.layer, head.call) and one not in excluded]
        for head in stripes
    }
    return {head: pool for head, pool in pools.items() if len(pool) >= LEAST_OTHERS}


def read_others(trial: Trial, others: Mapping[HeadId, Sequence[HeadId]]) -> None:
    """Ablate the other heads in a few prompts; in more where these do not tell the head from them by a wide margin.

    A head is clear of the others after the first prompts where an interval of twice the width leaves out zero: with 4
    prompts that is an error of 0.008, which is added to the 0.05 of the interval that is looked at otherwise.
    """
    trial.run([frozenset([one]) for pool in others.values() for one in pool], n=FIRST_PROMPTS)
    unclear = [head for head, pool in others.items() if not _clear(over_others(trial, head, pool))]
    trial.run([frozenset([one]) for head in unclear for one in others[head]], n=FEW_PROMPTS)


def _clear(estimate: Estimate | None) -> bool:
    if estimate is None or estimate.ci95 is None:
        return False
    low, high = estimate.ci95
    return estimate.mean > 2 * (estimate.mean - low) or -estimate.mean > 2 * (high - estimate.mean)


def over_others(trial: Trial, head: HeadId, others: Sequence[HeadId]) -> Estimate | None:
    """How much more it does to the second copy than to the first, than the median of the others does."""
    if not others:
        return None
    read = [trial.over_first_copy([one]) for one in others]
    n = min(FEW_PROMPTS, *map(len, read))
    rows = np.sort([one[:n] for one in read], axis=0)
    return Estimate.of_loss(trial.over_first_copy([head])[:n] - rows[(len(others) - 1) // 2])


def sizes_of(circuits: TokenSpace | None) -> dict[HeadId, float] | None:
    """Frobenius norm of each head's W_V W_O, where the weights can be assigned to heads: no V / O gauge changes it."""
    if circuits is None:
        return None
    return {
        HeadId(layer, head): _norm(*circuits.ov([HeadId(layer, head)]))
        for layer, weights in circuits.layers.items()
        for head in range(len(weights.w_o))
    }


def _norm(read: Tensor, write: Tensor) -> float:
    """|read @ write|_F from two cores of rank x rank: its square is the trace of (read^T read) (write write^T)."""
    read, write = widened(read), widened(write)
    square = ((read.T @ read) * (write @ write.T)).sum()
    return math.sqrt(max(float(square), 0.0))


def matched(
    heads: Sequence[HeadId],
    stripes: Sequence[HeadId],
    model: Model,
    sizes: dict[HeadId, float] | None,
    random: np.random.Generator,
) -> tuple[list[tuple[HeadId, ...]], list[tuple[HeadId, ...]]]:
    """Draws of some of these heads, and of as many others without a stripe, each from its layer and of its size.

    Where a layer has fewer others than heads of the set, so many of the set are drawn too: both have one count.
    """
    subsets, draws = [], []
    for _ in range(N_DRAWS):
        some: list[HeadId] = []
        others: list[HeadId] = []
        for layer in sorted({head.layer for head in heads}):
            pool = [HeadId(layer, one) for one in range(model.check.heads[layer])]
            pool = [one for one in pool if one not in stripes and one not in heads]
            here = [head for head in heads if head.layer == layer]
            for index in sorted(random.permutation(len(here))[: len(pool)].tolist()):
                near = sorted(pool, key=lambda one: _apart(sizes, one, here[index]))[:NEAREST]
                drawn = near[int(random.integers(len(near)))]
                pool.remove(drawn)
                some.append(here[index])
                others.append(drawn)
        if some:
            subsets.append(tuple(some))
            draws.append(tuple(others))
    return subsets, draws


def _apart(sizes: dict[HeadId, float] | None, first: HeadId, second: HeadId) -> float:
    """How much two heads' W_V W_O differ in size, as a ratio; 0 where sizes are not known."""
    if sizes is None:
        return 0.0
    one, two = sizes[HeadId(first.layer, first.head)], sizes[HeadId(second.layer, second.head)]
    return abs(math.log(one / two)) if one > 0 and two > 0 else 0.0 if one == two else math.inf
