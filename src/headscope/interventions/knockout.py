"""Attention knockout: a head no longer reads certain keys, and reads the others as before.

    drop       z' = z - sum over knocked-out keys of p(q, k) v_k            what it read there is gone
    mask       z' = (z - that sum) / (1 - the attention on those keys)     as if the keys were masked for this head

Exact, since a head's z is linear in its pattern. `drop` asks whether a head's effect comes from what it reads at these
keys, `mask` whether it needs them. Where all attention is on masked keys, z' is zero.

Cost: one layer's whole pattern for each edited layer. Needs the values, so the model's attention must be reached by our
attention function; models that run their own code hide them.

Reference:
    Geva et al. 2023, arXiv:2304.14767, where keys are masked.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from headscope.errors import UnsupportedModel
from headscope.heads import HeadId
from headscope.model.attention import Attention
from headscope.model.kernels import repeat_heads
from headscope.model.load import Model

How = Literal["drop", "mask"]
Places = Int[np.ndarray, "_place 2"]
"""Query and key of each place of one prompt."""
LEAST_LEFT = 1e-4
"""Attention outside the masked keys below which nothing is left to read: the difference from 1 is then rounding."""


def reads_values(model: Model) -> bool:
    """Whether keys of this model can be knocked out."""
    return model.route.path == "interface"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Knockout:
    """Takes keys from the heads of a world; an `Intervention` for `headscope.interventions.ablation.losses`."""

    model: Model
    """Whose heads; see `reads_values`."""
    places: Sequence[Places] | Mapping[HeadId, Sequence[Places]]
    """For each prompt the (query, key) pairs: one list for every head, or one for each."""
    how: How
    """What becomes of the rest."""

    def substitutes(self, index: Sequence[int], length: int) -> Callable[[Attention], Tensor]:
        """The places of these prompts as a mask [prompt, head or 1, query, key]."""

        def mask(places: Sequence[Places]) -> Tensor:
            made = torch.zeros(len(index), length, length, dtype=torch.bool)
            for row, one in enumerate(index):
                query, key = torch.from_numpy(places[one].astype(np.int64)).T
                made[row, query, key] = True
            return made

        if not isinstance(self.places, Mapping):
            shared = mask(self.places)[:, None]
            return lambda attention: shared.to(attention.z.device)
        masks = {id(places): mask(places) for places in {id(one): one for one in self.places.values()}.values()}
        own = {head: masks[id(places)] for head, places in self.places.items()}
        nothing = torch.zeros(len(index), length, length, dtype=torch.bool)

        def of_layer(attention: Attention) -> Tensor:
            heads = [HeadId(attention.layer, head, attention.call) for head in range(attention.n_heads)]
            return torch.stack([own.get(head, nothing) for head in heads], dim=1).to(attention.z.device)

        return of_layer

    def edited(
        self, attention: Attention, mask: Bool[Tensor, "copy head"], substitute: Bool[Tensor, "prompt _ query key"]
    ) -> Tensor:
        """Z [copy * prompt, position, head, d_head] with the heads of `mask` edited in their copies."""
        if attention.scores is None:
            raise UnsupportedModel(
                f"{self.model.id} computes attention in code of its own, whose values cannot be seen; "
                "keys cannot be knocked out of its heads."
            )
        n_copies = mask.shape[0]
        z = attention.z.unflatten(0, (n_copies, -1)).clone()
        heads = mask.any(0).nonzero()[:, 0].tolist()
        pattern = attention.pattern().unflatten(0, (n_copies, -1))
        values = repeat_heads(attention.scores.v, attention.n_heads).unflatten(0, (n_copies, -1))
        for head in heads:
            copies = mask[:, head].nonzero()[:, 0]
            inside = pattern[copies, :, head] * substitute[:, head % substitute.shape[1]]
            read = inside @ values[copies, :, head].to(inside.dtype)
            rest = z[copies, :, :, head].to(inside.dtype) - read
            if self.how == "mask":
                left = (1 - inside.sum(-1, keepdim=True)).clamp(min=0)
                rest = torch.where(left > LEAST_LEFT, rest / left.clamp(min=LEAST_LEFT), torch.zeros_like(rest))
            z[copies, :, :, head] = rest.to(z.dtype)
        return z.flatten(0, 1)
