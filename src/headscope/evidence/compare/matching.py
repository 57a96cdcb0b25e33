"""Which head of one model attends like which head of another, on the same prompts.

    S[a, b]         mean over rows of  sum_k sqrt(p_a[k] p_b[k])       1 where both patterns are equal
    chance[a, b]    its mean where, in each row, b's attention on the keys after the first were shuffled
    agreement[a, b] (S - chance) / (1 - chance + 0.02)

A row is the attention of one query over its keys; 32 rows spread over each of the first 8 prompts are read, in the
scan's own pass. Shuffling leaves alone how much rests on the first token and how sharp the rest is, so heads that rest,
or spread evenly, agree with nothing: their pattern says not which head they are. 0.02 keeps such heads from agreeing
by rounding.

The null is the permutation test's. Its mean and variance are exact; its tail is taken as normal, being a sum over
hundreds of rows, and p is multiplied by the number of heads that a match was chosen from:

    mean       x_0 y_0 + sum(x) sum(y) / m          x = sqrt(p_a), y = sqrt(p_b) over the m keys after the first
    variance   sum (x - mean(x))^2 sum (y - mean(y))^2 / (m - 1)

Matches are the assignment of most agreement in all. A head keeps its own number unless others agree more by 0.05.

Cost: rows * keys numbers for each head, and two matrix products of them. It misleads where heads rest on the first
token so much that little of their pattern is left; such heads are not matched.

Reference:
    Hoeffding 1951, Ann. Math. Stat. 22, 558-566 (moments of a permuted sum of products).
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from headscope.heads import HeadId
from headscope.model.attention import Attention
from headscope.stats import benjamini_hochberg

PROMPTS, QUERIES = 8, 32
"""Prompts whose patterns are read, and rows of each."""
FLOOR = 0.02
"""Added to what agreement is a share of."""
OWN_NUMBER = 0.05
"""By so much must another head agree more before a head is taken for another number."""


class Patterns:
    """Rows of every head's pattern, collected while a scan reads its prompts."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int, int], torch.Tensor] = {}
        self._n_heads: dict[tuple[int, int], int] = {}

    def watch(self, attention: Attention, prompts: Sequence[int]) -> None:
        """Keep this layer's rows of the first prompts."""
        at = (attention.layer, attention.call)
        self._n_heads[at] = attention.n_heads
        length, device = attention.z.shape[1], attention.z.device
        query = torch.linspace(1, length - 1, min(QUERIES, length - 1)).long().unique().to(device)
        kept = [(row, number) for row, number in enumerate(prompts) if number < PROMPTS]
        if not kept:
            return
        row = torch.tensor([row for row, _ in kept], device=device)
        places = torch.cartesian_prod(row, query, torch.arange(length, device=device))
        found = attention.probabilities(*places.unbind(1)).clamp(min=0).sqrt().float()
        by_prompt = found.reshape(len(kept), len(query), length, -1).permute(0, 3, 1, 2).cpu()
        for (_, number), rows in zip(kept, by_prompt, strict=True):
            self._rows[*at, number] = rows

    @property
    def heads(self) -> list[HeadId]:
        """Every head, in the order of the model."""
        return [HeadId(layer, head, call) for (layer, call), n in self._n_heads.items() for head in range(n)]

    def prompts(self) -> list[Float[np.ndarray, "head query key"]]:
        """Square roots of the probabilities, of each prompt."""
        numbers = sorted({number for *_, number in self._rows})
        return [
            torch.cat([self._rows[*at, number] for at in self._n_heads]).numpy().astype(np.float32)
            for number in numbers
        ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Agreement:
    """How alike the heads of two models attend."""

    similarity: Float[np.ndarray, "head other"]
    """S, in [0, 1]."""
    agreement: Float[np.ndarray, "head other"]
    """Share of what could lie above chance; 1 for equal patterns that rest nowhere, about 0 by chance."""
    z: Float[np.ndarray, "head other"]
    """(S - chance) over the null's standard deviation; 0 where shuffling changes nothing."""

    def q_values(self, matched: np.ndarray) -> Float[np.ndarray, " head"]:
        """For each head that its match is none: one-sided, times the heads it was chosen from, Benjamini-Hochberg's."""
        from scipy.stats import norm

        p = norm.sf(self.z[np.arange(len(matched)), matched]) * self.z.shape[1]
        return benjamini_hochberg(np.minimum(p, 1.0))


def agreement(first: Patterns, second: Patterns) -> Agreement:
    """Compare two models' patterns on the same prompts."""
    total = chance = variance = 0.0
    rows = 0
    for x, y in zip(first.prompts(), second.prompts(), strict=True):
        n_rows = x.shape[1]
        m = _keys(n_rows, x.shape[2])
        rows += n_rows
        rest = x[:, :, 0] @ y[:, :, 0].T
        total = total + _product(x[:, :, 1:], y[:, :, 1:]) + rest
        of_x, of_y = x[:, :, 1:].sum(2), y[:, :, 1:].sum(2)
        chance = chance + (of_x / m) @ of_y.T + rest
        # sum (x - mean)^2 = sum x^2 - (sum x)^2 / m, over the m keys that a query may see
        spread_x = np.maximum((x[:, :, 1:] ** 2).sum(2) - of_x**2 / m, 0.0)
        spread_y = np.maximum((y[:, :, 1:] ** 2).sum(2) - of_y**2 / m, 0.0)
        variance = variance + (spread_x / np.maximum(m - 1, 1)) @ spread_y.T
    similarity, by_chance = np.asarray(total) / rows, np.asarray(chance) / rows
    error = np.sqrt(np.asarray(variance)) / rows
    above = similarity - by_chance
    small = error < 1e-6
    return Agreement(
        similarity=similarity.clip(0.0, 1.0),
        agreement=above / (np.maximum(1 - by_chance, 0.0) + FLOOR),
        z=np.where(small, 0.0, above / np.where(small, 1.0, error)),
    )


def matches(found: Agreement, heads: Sequence[HeadId], others: Sequence[HeadId]) -> dict[HeadId, HeadId]:
    """The assignment of heads to others with most agreement in all."""
    from scipy.optimize import linear_sum_assignment

    number = {head: index for index, head in enumerate(others)}
    worth = found.agreement.copy()
    for index, head in enumerate(heads):
        if head in number:
            worth[index, number[head]] += OWN_NUMBER
    rows, columns = linear_sum_assignment(worth, maximize=True)
    return {heads[row]: others[column] for row, column in zip(rows, columns, strict=True)}


def _keys(n_rows: int, length: int) -> np.ndarray:
    """Keys after the first that each row's query may see."""
    query = torch.linspace(1, length - 1, min(QUERIES, length - 1)).long().unique().numpy()
    assert len(query) == n_rows, "rows are those that were read"
    return query.astype(np.float32)


def _product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1) @ y.reshape(len(y), -1).T
