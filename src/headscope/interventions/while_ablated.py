"""Two interventions at once: some heads patched while others are ablated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from headscope.heads import HeadId
from headscope.interventions.ablation import Intervention
from headscope.model.attention import Attention
from headscope.model.load import Model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WhileAblated:
    """In each world `heads` get what `patched` gives, the world's other heads what `ablator` gives."""

    ablator: Intervention
    """What is put in place of the other heads; one that gives every position."""
    patched: Intervention
    """What `heads` get."""
    heads: frozenset[HeadId]
    """Which heads are patched, in the worlds that name them."""

    @property
    def model(self) -> Model:
        """Whose heads."""
        return self.ablator.model

    def substitutes(self, index: Sequence[int], length: int) -> Callable[[Attention], Tensor]:
        """What ablates, then what is patched in, one after the other along the positions."""
        ablated = self.ablator.substitutes(index, length)
        patched = self.patched.substitutes(index, length)

        def substitute(attention: Attention) -> Tensor:
            n_heads, d_head = attention.z.shape[2:]
            whole = ablated(attention).to(attention.z).expand(len(index), length, n_heads, d_head)
            return torch.cat([whole, patched(attention).to(attention.z)], dim=1)

        return substitute

    def edited(self, attention: Attention, mask: Bool[Tensor, "copy head"], substitute: Tensor) -> Tensor:
        """Z with both edits."""
        length = attention.z.shape[1]
        mine = torch.zeros_like(mask)
        for head in self.heads:
            if (head.layer, head.call) == (attention.layer, attention.call):
                mine[:, head.head] = mask[:, head.head]
        z = self.ablator.edited(attention, mask & ~mine, substitute[:, :length])
        return self.patched.edited(replace(attention, z=z), mine, substitute[:, length:])
