"""What each head adds to the logits at one token of a text, along the direct path.

    a_h     = z_h W_O[h]                              what head h adds to the stream, through its layer's output norm
    l_h[t]  = N(a_h) . W_U[t]  minus its mean over t  what it adds to the logit of t

N is the final norm with the size that the stream has at this token, so that what is added by heads, MLPs and the
embedding sums to the logits. A shift of all logits changes no probability, so it is left out. A factor that the family
puts on all logits is measured and applied; where they are changed in another way (a soft-cap, a bias), `note` says so.

Cost: one pass; then each head's row of the whole vocabulary, 2 * heads * d_model * vocabulary operations. The weights
are read once (`headscope.model.weights`), and a copy of them in float32 is kept.

It misleads about heads that speak to other heads: what they write is read before it reaches the logits. A factor
between output projection and stream (Granite) is not in these numbers.
"""

# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.errors import UnsupportedModel
from headscope.heads import HeadId, ranking
from headscope.model.attention import Attention
from headscope.model.interface import Visit
from headscope.model.load import Model
from headscope.model.replay import decoder_layers, tolerance_of
from headscope.model.scope import hooking
from headscope.model.tokenizer import token_text
from headscope.model.weights import Norm, layer_weights, vocabulary
from headscope.probes.probe import Tokens

TOP = 5
"""Tokens of each head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Raised:
    """A token, and what a head adds to its logit."""

    id: int
    """Its id."""
    text: str | None
    """As the tokenizer shows it."""
    logit: float
    """Added, above the mean over the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What one head writes."""

    head: HeadId
    """Which."""
    raises: tuple[Raised, ...]
    """The tokens that it raises most, the most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writes:
    """What every head writes at one token."""

    heads: tuple[Written, ...]
    """By how much they raise what they raise most, the most first."""
    note: str | None
    """How these numbers differ from parts of the logits; None where they are such parts."""
    reason: str | None
    """Why there are none."""


class Writing:
    """A model's heads and its unembedding: read the weights once, then ask about any text.

    Raises:
        UnsupportedModel: weights that cannot be assigned to heads, or a stream that cannot be seen.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._layers = layer_weights(model)
        self._words = vocabulary(model)
        self._blocks = decoder_layers(model)
        if not self._blocks:
            raise UnsupportedModel(f"{model.id} ({model.family}): its decoder layers cannot be distinguished.")

    def at(self, tokens: Tokens, position: int, edit: Visit) -> Writes:
        """What each head writes at one token, while `edit` changes z."""
        z, stream, logits = self._run(tokens, position, edit)
        words = self._words
        final = normed(words.norm, stream, stream) + (0 if words.norm is None else words.norm.bias.to(stream))
        whole = centred(final @ words.unembedding.T)
        wanted = centred(logits[: len(whole)].to(whole))
        factor = (whole @ wanted) / (whole @ whole)
        exact = float((factor * whole - wanted).abs().max()) <= tolerance_of(logits)
        if not exact:
            factor = torch.ones_like(factor)
        found: list[Written] = []
        for (layer, call), heads in z.items():
            weights = self._layers[layer]
            parts = torch.einsum("hd,hdm->hm", heads.to(weights.w_o), weights.w_o)
            if weights.out_norm is not None:
                parts = normed(weights.out_norm, parts, parts.sum(0) + weights.b_o)
            raised = centred(normed(words.norm, parts.to(stream), stream) @ words.unembedding.T) * factor
            best = raised.topk(min(TOP, raised.shape[1]))
            for head, (values, ids) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
                found.append(Written(head=HeadId(layer, head, call), raises=self._raised(ids, values)))
        return Writes(
            heads=tuple(sorted(found, key=lambda one: ranking(one.raises[0].logit, one.head))),
            note=None if exact else "before what the model does to its logits at the end, like a soft-cap or a bias",
            reason=None,
        )

    def _raised(self, ids: list[int], values: list[float]) -> tuple[Raised, ...]:
        return tuple(
            Raised(id=one, text=token_text(self.model, one), logit=value)
            for one, value in zip(ids, values, strict=True)
        )

    def _run(
        self, tokens: Tokens, position: int, edit: Visit
    ) -> tuple[dict[tuple[int, int], Tensor], Float[Tensor, " d_model"], Float[Tensor, " vocabulary"]]:
        """At this token: every head's z, the stream after the last layer, and the logits."""
        z: dict[tuple[int, int], Tensor] = {}
        last: list[Any] = []

        def visit(attention: Attention) -> Tensor | None:
            edited = edit(attention)
            z[attention.layer, attention.call] = (attention.z if edited is None else edited)[0, position].clone()
            return edited

        def note(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            last[:] = [output[0] if isinstance(output, tuple) else output]

        with hooking(self._blocks, after=note):
            ids = torch.from_numpy(tokens)[None].to(self.model.device)
            result = self.model.run(ids, visit)
        logits = self.model.backbone.output(result)[0, position]
        (stream,) = last
        if not isinstance(stream, Tensor) or stream.shape != (1, len(tokens), self._words.unembedding.shape[1]):
            raise UnsupportedModel(
                f"{self.model.id} ({self.model.family}): its last layer does not give one row for every token, so what "
                "heads write cannot be read off; choose another model."
            )
        return z, stream[0, position].to(self._words.unembedding), logits


def normed(
    norm: Norm | None, part: Float[Tensor, "*head d_model"], whole: Float[Tensor, " d_model"]
) -> Float[Tensor, "*head d_model"]:
    """The share that a part has in what a norm makes of the whole: the size divided by is the whole's."""
    if norm is None:
        return part
    if norm.centred:
        part, whole = centred(part), centred(whole)
    return part * norm.gain.to(part) / whole.square().mean().sqrt().to(part)


def centred(rows: Float[Tensor, "*row d"]) -> Float[Tensor, "*row d"]:
    """Without each row's mean."""
    return rows - rows.mean(-1, keepdim=True)
