"""The swap test: which heads carry the difference in loss between two models?

A head's z in one model becomes the other's on the same prompts, one head at a time, in both directions:

    D            loss(B) - loss(A), on the second copy
    restores     -(loss(B with A's z) - loss(B)) / D       1: A's head alone undoes the difference (it is necessary)
    transfers     (loss(A with B's z) - loss(A)) / D       1: B's head alone brings the difference (it is sufficient)
    carries      both shares >= 0.1, both with q <= 0.05 (Benjamini-Hochberg, over heads and directions)
    adds         what it restores beside the carriers of earlier layers; below 0.1 it passes on what they changed
    sources      carriers that add: together, and as many random other heads five times, are the test and its control

Shares are ratios of means with Fieller's interval. Nothing is asked unless D is significant and at least 0.01 nats.

Cost: two passes per head and prompt, less the layers before the head.

It misleads where the two models' heads write in other bases, as in two seeds: z of one means nothing to the other's
output projection. So it takes models whose heads keep their numbers, and `everything` says what all heads restore and
transfer together; far below 1, the difference is carried elsewhere, by MLPs or output projections.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headscope.errors import ArgumentError
from headscope.evidence.compare.result import RULE, HeadSwap, SetSwap, SwapTest
from headscope.heads import HeadId
from headscope.interventions.ablation import losses
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.probes.copies import check_repeats
from headscope.probes.probe import Tokens
from headscope.records.common import Estimate
from headscope.stats import benjamini_hochberg, p_values

DRAWS = 5
"""Sets of random heads."""

Places = dict[tuple[int, int], Tensor]
AblatedHeads = frozenset[HeadId]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transplant:
    """Z of another model on the same prompts, in place of a head's own."""

    model: Model
    """Whose heads are replaced."""
    donor: Model
    """Whose z they get."""
    prompts: Sequence[Tokens]
    """What both read."""

    def substitutes(self, index: Sequence[int], length: int) -> Callable[[Attention], Tensor]:
        """The donor's z in these prompts, [prompt, position, head, d_head]."""
        found: Places = {}

        def visit(attention: Attention) -> None:
            found[attention.layer, attention.call] = attention.z.clone()

        rows = torch.from_numpy(np.stack([self.prompts[one] for one in index]))
        self.donor.run(rows.to(self.donor.device), visit, stop_at_last=True)
        return lambda attention: found[attention.layer, attention.call].to(attention.z.device)

    def edited(self, attention: Attention, mask: Tensor, substitute: Tensor) -> Tensor:
        """Z [copy * prompt, position, head, d_head] with the heads of `mask` [copy, head] replaced."""
        z = attention.z.unflatten(0, (mask.shape[0], -1))
        return torch.where(mask[:, None, None, :, None], substitute.to(z.dtype)[None], z).flatten(0, 1)


def swap_test(
    a: Model,
    b: Model,
    prompts: Sequence[Tokens],
    heads: Sequence[HeadId],
    *,
    names: Mapping[HeadId, HeadId],
    seed: int,
) -> SwapTest:
    """Exchange every head, then the sources together, then as many random ones.

    Nothing is asked where a head's counterpart in `names` has another number: z has no place there.
    """
    queries = {"second_copy": [one.second for one in check_repeats(tuple(prompts))]}

    def run(into: Model, donor: Model, worlds: Sequence[AblatedHeads]) -> dict[AblatedHeads, np.ndarray]:
        """Change of loss in each prompt, and under the empty set the loss itself."""
        wanted = list(dict.fromkeys([frozenset(), *worlds]))
        found = losses(Transplant(model=into, donor=donor, prompts=prompts), prompts, queries, wanted)["second_copy"]
        return {world: row - (found[0] if world else 0.0) for world, row in zip(wanted, found, strict=True)}

    loss_a, loss_b = (run(*pair, [])[frozenset()] for pair in ((a, b), (b, a)))
    apart = loss_b - loss_a
    summary = {"loss_a": Estimate.of(loss_a), "loss_b": Estimate.of(loss_b), "difference": Estimate.of(apart)}
    moved = [f"{head} is {other}" for head, other in names.items() if head != other]
    if moved:
        reason = f"heads are matched with other numbers ({moved[0]}), so that z of one model has no place in the other"
        return SwapTest(**summary, asked=False, reason=reason, heads=(), everything=None, sources=None, random=())
    if abs(apart.mean()) < RULE.delta_loss_nats or float(p_values(apart)) > RULE.false_discovery:
        reason = f"the losses differ by less than {RULE.delta_loss_nats} nats, or not significantly"
        return SwapTest(**summary, asked=False, reason=reason, heads=(), everything=None, sources=None, random=())

    def shares(world: AblatedHeads) -> SetSwap:
        return SetSwap(
            heads=tuple(sorted(world)),
            restores=Estimate.of_ratio(-into_b[world], apart),
            transfers=Estimate.of_ratio(into_a[world], apart),
        )

    singles: list[AblatedHeads] = [frozenset([head]) for head in heads]
    into_b, into_a = run(b, a, [*singles, frozenset(heads)]), run(a, b, [*singles, frozenset(heads)])
    p = p_values(np.stack([*(into_b[one] for one in singles), *(into_a[one] for one in singles)], axis=1))
    q = benjamini_hochberg(p).reshape(2, -1).max(axis=0)
    alone = {head: shares(frozenset([head])) for head in heads}
    carriers = [
        head
        for head, worst in zip(heads, q, strict=True)
        if worst <= RULE.false_discovery and min(alone[head].restores.mean, alone[head].transfers.mean) >= RULE.share
    ]
    before = {head: frozenset(one for one in carriers if one.layer < head.layer) for head in carriers}
    later = [head for head in carriers if before[head]]
    into_b |= run(b, a, [world for head in later for world in (before[head], before[head] | {head})])
    adds = {head: Estimate.of_ratio(into_b[before[head]] - into_b[before[head] | {head}], apart) for head in later}
    sources = [head for head in carriers if head not in adds or adds[head].mean >= RULE.share]
    draws = _random(sources, [head for head in heads if head not in carriers], seed)
    into_b |= run(b, a, [frozenset(sources), *draws])
    into_a |= run(a, b, [frozenset(sources), *draws])
    return SwapTest(
        **summary,
        asked=True,
        reason="the losses differ significantly",
        heads=tuple(
            HeadSwap(
                head=head,
                restores=alone[head].restores,
                transfers=alone[head].transfers,
                q_value=float(worst),
                carries=head in carriers,
                adds=adds.get(head),
                source=head in sources,
            )
            for head, worst in zip(heads, q, strict=True)
        ),
        everything=shares(frozenset(heads)),
        sources=shares(frozenset(sources)) if sources else None,
        random=tuple(shares(draw) for draw in draws),
    )


def refuse_other_shapes(a: Model, b: Model, *, paired: bool) -> None:
    """Raise where z of one model has no place in the other, before anything is measured.

    Raises:
        ArgumentError: other prompts, other numbers of heads, or other sizes of z.
    """
    if not paired:
        why = "they do not read the same prompts"
    elif a.check.heads != b.check.heads or _sizes(a) != _sizes(b):
        why = "their heads differ in number or size"
    else:
        return
    raise ArgumentError(f"the swap test cannot put z of {a.id} into {b.id}: {why}; compare them without it.")


def _sizes(model: Model) -> list[tuple[int, ...]]:
    """Shape of z in every call of every layer."""
    found: list[tuple[int, ...]] = []
    tokens = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    model.run(tokens, lambda attention: found.append(tuple(attention.z.shape)), stop_at_last=True)
    return found


def _random(sources: Sequence[HeadId], others: Sequence[HeadId], seed: int) -> list[AblatedHeads]:
    """Different draws of as many other heads, from the same layers where these have enough."""
    random, draws = np.random.default_rng(seed), list[AblatedHeads]()
    layers = {head.layer for head in sources}
    pool = [head for head in others if head.layer in layers]
    pool = pool if len(pool) >= len(sources) else list(others)
    if not sources or len(pool) < len(sources):
        return []
    for _ in range(DRAWS):
        draw = frozenset(pool[int(one)] for one in random.permutation(len(pool))[: len(sources)])
        if draw not in draws:
            draws.append(draw)
    return draws
