"""Weights of attention whose projections are parameters, not linear layers: its block is asked by unit vectors.

What a module of the block gives before the attention is replaced by zero and by each unit vector. If q, k and v are
affine in it, these are their biases and weights; the heads' results are replaced likewise, and the last module's output
that is affine in them is what the attention writes. All of it is tried on real tokens, in which nothing is replaced.

Cost: for each layer a pass over d_model + 1 prompts of 4 tokens for every module that is tried, the nearest first, and
one over n_heads * d_head + 1.
"""

# pyright: reportUnknownArgumentType=false
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headscope.model.attention import Attention
from headscope.model.load import Model
from headscope.model.weights.layer import LayerWeights
from headscope.model.weights.norms import input_norm, output_norm
from headscope.model.weights.readers import refuse_other_readers
from headscope.model.weights.recording import (
    N_POSITIONS,
    N_PROMPTS,
    Call,
    Record,
    decoder_layer,
    queries_keys_values,
    recorded,
    rows_of,
    share_apart,
    tolerance_of,
    watching,
    widened,
)

MOST_TRIED = 8
"""Modules before the attention whose output may be what it reads."""
BATCH = 256
"""Unit vectors in one pass."""


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """y = x @ matrix + bias, y of any shape."""

    matrix: Float[Tensor, "given ..."]
    bias: Tensor

    @classmethod
    def of(cls, answers: Float[Tensor, "row ..."]) -> Affine:
        """From what zero and each unit vector gave, in this order."""
        return cls(answers[1:] - answers[0], answers[0])

    def apart(self, x: Float[Tensor, "prompt position given"], y: Float[Tensor, "prompt position ..."]) -> float:
        """How far it is from having made `y` of `x`, as a share of the largest number."""
        return share_apart(torch.tensordot(x.to(self.matrix), self.matrix, 1) + self.bias, y.to(self.matrix))


def asked_weights(model: Model) -> dict[int, LayerWeights] | None:
    """The weights of every layer that has attention; None where one does not read the output of a module affinely.

    Also where a layer attends in several modules: their weights are not one set.
    """
    owners: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for owner, site in ((owner, site) for owner, sites in model.route.sites.items() for site in sites):
        owners[site.layer][site.call].add(owner)
    if any(one != calls[0] for calls in owners.values() for one in calls.values()):
        return None
    blocks = {layer: decoder_layer(model, layer) for layer in sorted(model.check.heads)}
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(model.n_embeddings, (N_PROMPTS, N_POSITIONS), generator=random).to(model.device)
    record = recorded(model, tokens, set(), set(blocks.values()))
    found = {layer: _layer(model, layer, block, record) for layer, block in blocks.items() if layer in record.seen}
    known = {layer: one for layer, one in found.items() if one is not None}
    if len(known) < len(blocks):
        return None
    weights, outputs = ({layer: one[at] for layer, one in known.items()} for at in (0, 1))
    refuse_other_readers(
        model, tokens, record, cast(dict[int, LayerWeights], weights), cast(dict[int, nn.Module], outputs)
    )
    return cast(dict[int, LayerWeights], weights)


def _layer(model: Model, layer: int, block: nn.Module, record: Record) -> tuple[LayerWeights, nn.Module] | None:
    (start, seen), inside = record.seen[layer], set(block.modules())
    before = [call for call in record.calls[:start] if call.module in inside]
    behind = [call for call in record.calls[start:] if call.module in inside]
    read = _read(model, layer, before, seen)
    wrote = None if read is None else _wrote(model, layer, behind, seen["z"], read.x.output.shape[-1])
    if read is None or wrote is None:
        return None
    writer, o = wrote
    output = writer.output
    weights = LayerWeights(
        layer=layer,
        w_q=read.maps["q"].matrix.transpose(0, 1).contiguous(),
        w_k=read.maps["k"].matrix.transpose(0, 1).contiguous(),
        w_v=read.maps["v"].matrix.transpose(0, 1).contiguous(),
        w_o=o.matrix.unflatten(0, seen["z"].shape[2:]),
        b_q=read.maps["q"].bias,
        b_k=read.maps["k"].bias,
        b_v=read.maps["v"].bias,
        b_o=o.bias,
        scale=read.scale,
        norm=input_norm(model, layer, block, read.x.output, record.calls[:start], record.begun.get(block, [])),
        out_norm=output_norm(model, layer, output, record.calls[start:]),
        qk_norm=False,
        rotary=read.rotary,
    )
    return weights, writer.module


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Reading:
    """What q, k and v are made of."""

    x: Call
    """The module whose output they are affine in."""
    maps: dict[str, Affine]
    """Of `q`, `k` and `v`."""
    scale: float
    rotary: bool


def _read(model: Model, layer: int, before: list[Call], seen: dict[str, Tensor]) -> _Reading | None:
    tolerance = tolerance_of(model)
    for call in reversed(list({call.module: call for call in before}.values())[-MOST_TRIED:]):
        x = rows_of(widened(call.output), N_PROMPTS, N_POSITIONS)
        if x is None:
            continue
        answers, scales = dict[str, list[Tensor]](), list[float]()

        def visit(
            attention: Attention, answers: dict[str, list[Tensor]] = answers, scales: list[float] = scales
        ) -> None:
            if attention.layer == layer and not attention.call and attention.scores is not None:
                scales.append(attention.scores.rule.scale)
                for name, values in queries_keys_values(model, attention).items():
                    answers.setdefault(name, []).append(values[:, 0].clone())

        for rows in zero_and_units(x.shape[-1]):

            def instead(module: nn.Module, given: Tensor, output: Tensor, at: Call = call, rows: Tensor = rows) -> Any:
                return _spread(rows, output) if module is at.module else None

            with watching(model.module, instead):
                model.run(_tokens(model, len(rows)), visit)
        maps = {name: Affine.of(torch.cat(parts)) for name, parts in answers.items()}
        if not maps or any(one.apart(x[:, :1], seen[name][:, :1]) > tolerance for name, one in maps.items()):
            continue
        turned = [name for name, one in maps.items() if one.apart(x, seen[name]) > tolerance]
        if "v" not in turned:
            return _Reading(x=call, maps=maps, scale=scales[0], rotary=bool(turned))
    return None


def _wrote(
    model: Model, layer: int, behind: list[Call], z: Float[Tensor, "prompt position head d"], d_model: int
) -> tuple[Call, Affine] | None:
    """The last output behind the attention that is affine in the heads' results, and how."""
    calls = {
        call.module: rows
        for call in behind
        if (rows := rows_of(widened(call.output), N_PROMPTS, N_POSITIONS)) is not None and rows.shape[-1] == d_model
    }
    answers: dict[nn.Module, list[Tensor]] = {module: [] for module in calls}
    for rows in zero_and_units(z.shape[2] * z.shape[3]):

        def visit(attention: Attention, rows: Tensor = rows) -> Tensor | None:
            here = attention.layer == layer and not attention.call
            return _spread(rows, attention.z.flatten(2)).view(attention.z.shape) if here else None

        last: dict[nn.Module, Tensor] = {}

        def after(module: nn.Module, given: Tensor, output: Tensor, last: dict[nn.Module, Tensor] = last) -> None:
            if module in calls:
                last[module] = widened(output).reshape(-1, N_POSITIONS, d_model)[:, 0].clone()

        with watching(model.module, after):
            model.run(_tokens(model, len(rows)), visit)
        for module, one in last.items():
            answers[module].append(one)
    for module, output in reversed(calls.items()):
        o = Affine.of(torch.cat(answers[module]))
        if bool(o.matrix.any()) and o.apart(z.flatten(2), output) <= tolerance_of(model):
            return next(call for call in reversed(behind) if call.module is module), o
    return None


def _tokens(model: Model, n_prompts: int) -> Tensor:
    return (torch.arange(n_prompts * N_POSITIONS, device=model.device) % model.n_embeddings).view(n_prompts, -1)


def zero_and_units(width: int) -> Iterator[Float[Tensor, "row width"]]:
    """Zero and every unit vector, a batch at a time."""
    yield from torch.cat([torch.zeros(1, width), torch.eye(width)]).split(BATCH)


def _spread(rows: Float[Tensor, "row width"], like: Tensor) -> Tensor:
    """A row for each prompt, at all of its positions."""
    return rows.to(like)[:, None].expand(-1, N_POSITIONS, -1).reshape(like.shape)
