"""Choices: what a model would say next, of two tokens that are offered.

    difference = logit(first) - logit(second)        at the last token of a prompt

It is the log of the ratio of the two probabilities, in nats, and needs one row for both.
`headscope.interventions.ablation` measures it in as many worlds as asked for, as it measures losses, and
`headscope.evidence.ablation.each` takes its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headscope.probes.probe import Tokens

KIND = "difference"
"""The name of what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    """For each prompt the two tokens that may come next."""

    first: Int[np.ndarray, " prompt"]
    """Ids of the tokens that count for."""
    second: Int[np.ndarray, " prompt"]
    """Ids of the tokens that count against."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is measured."""
        return (KIND,)

    def targets(self, prompts: Sequence[Tokens], index: Sequence[int]) -> ChoiceTargets:
        """Those of `index`, whose prompts have one length."""
        return ChoiceTargets(
            index=index,
            tokens=np.stack([prompts[one] for one in index]),
            pairs=np.stack([self.first[list(index)], self.second[list(index)]], axis=1),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChoiceTargets:
    """Some prompts of one length, and the two tokens between which each is asked."""

    index: Sequence[int]
    """Which prompts."""
    tokens: Int[np.ndarray, "prompt position"]
    """Their ids."""
    pairs: Int[np.ndarray, "prompt 2"]
    """The two tokens."""

    @property
    def n_places(self) -> int:
        """Tokens whose logits are asked for."""
        return len(self.tokens)

    def places(self, copies: int) -> Int[Tensor, "place 2"]:
        """Batch row and position of the last token of every prompt in every copy."""
        rows = torch.arange(copies * len(self.tokens))
        return torch.stack([rows, torch.full_like(rows, self.tokens.shape[1] - 1)], dim=1)

    def losses(self, logits: Float[Tensor, "place vocabulary"], copies: int) -> dict[str, np.ndarray]:
        """[copy, prompt] difference, from the logits at `places`."""
        return {KIND: self._differences(logits, copies).cpu().double().numpy().reshape(copies, -1)}

    def total(self, logits: Float[Tensor, "place vocabulary"]) -> Float[Tensor, ""]:
        """Sum over the prompts, whose gradient is each prompt's own."""
        return self._differences(logits, 1).sum()

    def _differences(self, logits: Tensor, copies: int) -> Float[Tensor, " place"]:
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        pairs = torch.from_numpy(self.pairs).to(wide.device).repeat(copies, 1)
        chosen = wide.gather(1, pairs)
        return chosen[:, 0] - chosen[:, 1]
