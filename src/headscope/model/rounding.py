"""How far rounding moves a model's own output: where a router is nearly undecided between experts, as far as an error.

    moved[t]  = max over logits of |own(embedding rounded otherwise) - own| at token t
    explains   |ours - own| is, in the median token and in the worst, at most twice that of the draws, and the model's
               own output repeats itself

A draw multiplies every number of the embedding by 1 + u, u uniform within half the distance between two numbers of its
dtype, and rounds. Twice, for our pass rounds otherwise in every layer. The median is for errors that the worst token
hides: a changed choice moves the tokens that made it, and an error moves all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headscope.model.attention import Scores
from headscope.model.precision import widened
from headscope.model.scope import hooking

DRAWS = 16
"""At most: of a few tokens, not every draw changes a choice."""

LARGEST_LOGIT = 1e5
"""Past it a row's lse is that of masks: -1e9, the smallest number, minus infinity."""


def moved_by_rounding(
    embedding: nn.Module, run: Callable[[], Tensor], own: Tensor, ours: Tensor, limit: float
) -> float:
    """How far rounding moves the output `own` of `run`, where that explains the difference of `ours`; else 0.

    Args:
        embedding: What is rounded otherwise.
        run: A pass of the model's own.
        own: What `run` gives.
        ours: The output of a pass through our attention.
        limit: A difference that needs no explanation.
    """
    generator = torch.Generator().manual_seed(0)

    def otherwise(module: Any, arguments: Any, named: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        noise = torch.rand(output.shape, generator=generator).to(output.device) - 0.5
        return (widened(output) * (1 + torch.finfo(output.dtype).eps * noise)).to(output.dtype)

    found_median, found_worst = _median_and_worst(ours - own)
    if _median_and_worst(run() - own)[1] > limit:  # noise, say, or a counter
        return 0.0
    median = worst = 0.0
    with hooking([embedding], after=otherwise):
        for _ in range(DRAWS):
            draw = _median_and_worst(run() - own)
            median, worst = max(median, draw[0]), max(worst, draw[1])
            if found_median <= max(limit, 2 * median) and found_worst <= 2 * worst:
                return worst
    return 0.0


def of_logits(scores: Scores) -> float:
    """How far rounding of the logits moves a probability that is not near 0: eps max |lse|, but for masked rows.

    exp(x) is off by the share that x is off by, and x by eps |x|; of probabilities that count, x is near the row's lse.
    """
    sizes = scores.lse.abs()
    sizes = sizes[sizes < LARGEST_LOGIT]
    return torch.finfo(sizes.dtype).eps * float(sizes.max()) if sizes.numel() else 0.0


def _median_and_worst(difference: Tensor) -> tuple[float, float]:
    by_token = widened(difference).abs().flatten(0, -2).amax(-1)
    return float(by_token.median()), float(by_token.max())
