"""Patching: a head's z in a prompt becomes what it was in that prompt's neutral form or twin.

The two texts differ before their last words, so their ends are laid upon each other: z is replaced at the last
`n_last` positions, the words that all prompts of the set and their sources end with alike. Whatever a head carries from
the claim to the answer it carries into one of these.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from headscope.interventions.ablation import same_length
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.probes.pairs import shared_end
from headscope.probes.probe import Tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActivationPatch:
    """Replaces z by that of other prompts, position by position, counted from the end."""

    model: Model
    """Whose heads."""
    sources: Sequence[Tokens]
    """For each prompt the one whose z it gets."""
    n_last: int
    """How many positions."""
    own_last: int = 0
    """The last so many of these keep their own z."""
    _last: dict[tuple[int, ...], Callable[[Attention], Tensor]] = field(
        default_factory=dict[tuple[int, ...], Callable[[Attention], Tensor]]
    )

    @classmethod
    def of(cls, model: Model, prompts: Sequence[Tokens], sources: Sequence[Tokens]) -> ActivationPatch:
        """Over the end that every prompt shares with its source; at least the last position, where the answer is."""
        shared = min(shared_end(one, two) for one, two in zip(prompts, sources, strict=True))
        return cls(model=model, sources=sources, n_last=max(1, shared))

    def substitutes(self, index: Sequence[int], length: int) -> Callable[[Attention], Tensor]:
        """Z of these prompts' sources: from an attention call to [prompt, position from the end, head, d_head].

        Asked for the same prompts again, it does not read their sources again.
        """
        key = tuple(index)
        if key not in self._last:
            self._last.clear()
            self._last[key] = self._read(index)
        return self._last[key]

    def _read(self, index: Sequence[int]) -> Callable[[Attention], Tensor]:
        parts: list[tuple[list[int], dict[tuple[int, int], Tensor]]] = []
        for same in same_length([self.sources[one] for one in index]):
            rows = torch.stack([torch.from_numpy(self.sources[index[one]]) for one in same])
            parts.append((same, self._ends(rows.to(self.model.device))))

        def substitute(attention: Attention) -> Tensor:
            at = (attention.layer, attention.call)
            z = attention.z.new_empty(len(index), self.n_last, *attention.z.shape[2:])
            for same, ends in parts:
                z[same] = ends[at].to(z)
            return z

        return substitute

    def _ends(self, rows: Tensor) -> dict[tuple[int, int], Tensor]:
        found: dict[tuple[int, int], Tensor] = {}

        def visit(attention: Attention) -> None:
            found[attention.layer, attention.call] = attention.z[:, -self.n_last :].clone()

        self.model.run(rows, visit, stop_at_last=True)
        return found

    def edited(
        self,
        attention: Attention,
        mask: Bool[Tensor, "copy head"],
        substitute: Float[Tensor, "prompt last head d_head"],
    ) -> Float[Tensor, "row position head d_head"]:
        """Z with the last positions of the heads of `mask` replaced, in each copy of the prompts."""
        z = attention.z.unflatten(0, (mask.shape[0], -1))
        start, end = z[:, :, : -self.n_last], z[:, :, -self.n_last :]
        patched = torch.where(mask[:, None, None, :, None], substitute.to(z.dtype)[None], end)
        changed = self.n_last - self.own_last
        return torch.cat([start, patched[:, :, :changed], end[:, :, changed:]], dim=2).flatten(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LastPatch:
    """Puts one z in place at the last position of every prompt."""

    model: Model
    """Whose heads."""
    z: Mapping[tuple[int, int], Float[Tensor, "head d_head"]]
    """By layer and call."""

    def substitutes(self, index: Sequence[int], length: int) -> Callable[[Attention], Tensor]:
        """Z [head, d_head] of an attention call."""
        return lambda attention: self.z[attention.layer, attention.call].to(attention.z)

    def edited(
        self, attention: Attention, mask: Bool[Tensor, "copy head"], substitute: Float[Tensor, "head d_head"]
    ) -> Float[Tensor, "row position head d_head"]:
        """Z with the last position of the heads of `mask` replaced, in each copy of the prompts."""
        z = attention.z.unflatten(0, (mask.shape[0], -1)).clone()
        z[:, :, -1] = torch.where(mask[:, None, :, None], substitute, z[:, :, -1])
        return z.flatten(0, 1)
