"""The shape of a head's pattern, whatever the tokens: offsets, reach, and the size of what it writes.

    offset d      mean attention d tokens back, d >= 2, where nothing repeats; the key at position 0 is left out
    near          attention on the last 8 tokens, key 0 left out, of queries that see at least twice as many
    far           attention on all other keys but key 0
    output        |z W_O|, mean over positions, as a share of the mean over the heads of its layer

Cost: one pass over the prompts and one over their controls; one layer's whole pattern at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headscope.errors import UnsupportedModel
from headscope.evidence.offsets import BATCH_NUMBERS, MIN_OFFSET, MIN_QUERIES
from headscope.heads import HeadId
from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.memory import in_batches
from headscope.model.weights.assembly import layer_weights
from headscope.probes.probe import Tokens

WINDOW = 8
"""Tokens that count as near."""


def shapes_of(
    model: Model, heads: Sequence[HeadId], prompts: Sequence[Tokens], controls: Sequence[Tokens]
) -> dict[str, np.ndarray]:
    """Shapes [prompt, head], and `offset` [head]; see this module's text.

    Names: `offset score`, `near`, `far`, `near random`, `far random`, and `output` where weights are known by head.
    """
    on_repeats = _read(model, heads, prompts)
    on_random = _read(model, heads, controls)
    offsets = on_random["offsets"]
    best = offsets.mean(0).argmax(-1)
    found = {
        "offset score": np.take_along_axis(offsets, best[None, :, None], axis=2)[..., 0],
        "offset": (best + MIN_OFFSET).astype(np.float64),
        "near": on_repeats["near"],
        "far": on_repeats["far"],
        "near random": on_random["near"],
        "far random": on_random["far"],
    }
    if "output" in on_repeats:
        found["output"] = on_repeats["output"]
    return found


def reach(model: Model, heads: Sequence[HeadId], prompts: Sequence[Tokens]) -> dict[str, np.ndarray]:
    """`near` and `far` [prompt, head] on prompts of one length."""
    return {name: values for name, values in _read(model, heads, prompts).items() if name in ("near", "far")}


def _read(model: Model, heads: Sequence[HeadId], prompts: Sequence[Tokens]) -> dict[str, np.ndarray]:
    length = len(prompts[0])
    offsets = range(MIN_OFFSET, max(MIN_OFFSET + 1, length - MIN_QUERIES))
    first = min(2 * WINDOW, length - 1)
    column = {head: at for at, head in enumerate(heads)}
    grams = _grams(model)
    found = {
        "offsets": np.zeros((len(prompts), len(heads), len(offsets))),
        "near": np.zeros((len(prompts), len(heads))),
        "far": np.zeros((len(prompts), len(heads))),
    }
    if grams is not None:
        found["output"] = np.zeros((len(prompts), len(heads)))
    query = torch.arange(length)
    back = query[:, None] - query[None, :]
    near = ((back >= 0) & (back < WINDOW) & (query[None, :] > 0))[first:]

    def run(part: Sequence[int]) -> list[tuple[list[int], dict[str, np.ndarray]]]:
        seen: list[tuple[list[int], dict[str, np.ndarray]]] = []

        def visit(attention: Attention) -> None:
            if attention.call:
                return
            pattern = attention.pattern()
            rows = pattern[:, :, first:]
            close = (rows * near.to(rows)).sum(-1)
            read = {
                "offsets": torch.stack([pattern.diagonal(-d, 2, 3)[..., 1:].mean(-1) for d in offsets], dim=-1),
                "near": close.mean(-1),
                "far": (1 - close - rows[..., 0]).clamp(min=0).mean(-1),
            }
            if grams is not None:
                gram = grams[attention.layer].to(attention.z.device)
                square = torch.einsum("bqhd,hde,bqhe->bqh", attention.z.to(gram), gram, attention.z.to(gram))
                size = square.clamp(min=0).sqrt().mean(1)
                read["output"] = size / size.mean(-1, keepdim=True).clamp(min=1e-30)
            columns = [column[HeadId(attention.layer, head)] for head in range(attention.n_heads)]
            seen.append((columns, {name: values.cpu().double().numpy() for name, values in read.items()}))

        rows = torch.from_numpy(np.stack([prompts[one] for one in part])).to(model.device)
        model.run(rows, visit, stop_at_last=True)
        return seen

    size = max(1, min(BATCH_NUMBERS // (max(1, model.n_heads) * length * length), 4096 // length))
    for part, seen in in_batches(range(len(prompts)), size, run):
        for columns, read in seen:
            for name, values in read.items():
                found[name][np.ix_(list(part), columns)] = values
    return found


def _grams(model: Model) -> dict[int, Tensor] | None:
    """W_O W_O^T of each head by layer [head, d_head, d_head]; None where the weights do not split by head."""
    try:
        layers = layer_weights(model)
    except UnsupportedModel:
        return None
    return {layer: torch.stack([one.float() @ one.float().mT for one in each.w_o]) for layer, each in layers.items()}
