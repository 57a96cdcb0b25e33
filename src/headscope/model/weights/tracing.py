"""Which columns of the linear layers' outputs each head's q, k and v are, and which linear layer reads its result.

Every linear layer's output is replaced by random signs, different for each of its columns. A column of q that carries a
column's signs was computed from it; so fused, interleaved, scaled and repeated projections need no case of their own,
and a normalisation of q and k lets signs through too. A second pass, with numbers of all sizes in place of signs,
distinguishes a factor from a normalisation or a gate.
"""

# pyright: reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.model.attention import Attention
from headscope.model.hooks import is_projection
from headscope.model.interface import Visit
from headscope.model.load import Model
from headscope.model.weights.recording import (
    N_CODES,
    N_POSITIONS,
    N_PROMPTS,
    WORDS,
    queries_keys_values,
    refused,
    rows_of,
    share_apart,
    share_apart_by_row,
    tolerance_of,
    watching,
    widened,
)

LEAST_CORRELATION = 0.9
"""Of signs with what a normalisation makes of them: 1 for RMSNorm, sqrt(1 - 1 / d_head) for LayerNorm."""
ROUNDING = 1e-5
"""A factor this close to 1, and a shift this small beside its factor, are rounding in the fit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Where each column of q, k or v comes from: `gain * output column of a linear layer + shift`."""

    modules: tuple[nn.Module, ...]
    source: Int[Tensor, "head d"]
    """Index into `modules`."""
    column: Int[Tensor, "head d"]
    gain: Float[Tensor, "head d"]
    shift: Float[Tensor, "head d"]
    linear: bool = True
    """False where each row and head is also multiplied by a positive number of its own: before gain and shift."""
    centred: Literal["no", "head", "all"] = "no"
    """Over what the mean is subtracted before the gain."""

    def gather(self, values: dict[nn.Module, Tensor]) -> Tensor:
        """The linear layers' columns [..., column] in the order of the heads: [..., head, d]."""
        given = [values[module].to(self.source.device) for module in self.modules]
        found = given[0].new_empty(*given[0].shape[:-1], *self.source.shape)
        for index, columns in enumerate(given):
            here = self.source == index
            found[..., here] = columns[..., self.column[here]]
        return found

    def centre(self, columns: Float[Tensor, "*rows head d"]) -> Float[Tensor, "*rows head d"]:
        """Without the mean that a normalisation of q or k subtracts."""
        match self.centred:
            case "no":
                return columns
            case "head":
                return columns - columns.mean(-1, keepdim=True)
            case "all":
                return columns - columns.mean((-2, -1), keepdim=True)


@dataclass(slots=True, kw_only=True, eq=False)
class Trace:
    """What is known of one layer's attention so far."""

    parts: dict[str, Part]
    """Of `q`, `k` and `v`."""
    scale: float
    o: nn.Module | None = None
    """The linear layer that reads the heads' results."""
    o_row: Tensor | None = None
    """Its input column that each place [head, d_v] of z becomes, times `o_gain`."""
    o_gain: Tensor | None = None
    rotary: bool = False


def _substituted(
    model: Model,
    n_prompts: int,
    draw: Callable[[nn.Module, int], Tensor | None],
    visit: Visit,
    took: Callable[[nn.Module, Tensor], None] | None = None,
) -> None:
    """One pass in which `draw(module, width)` [prompt position width] replaces what linear layers give.

    `took` sees each linear layer's input. The tokens do not matter, but where something reads the stream itself.
    """
    head = model.backbone.unembedding
    # An adapter and the layer that it is around are one linear map, whose output is the adapter's.
    around = [module for module in model.module.modules() if "base_layer" in module._modules]
    inner = {part for module in around for part in module.modules() if part is not module}

    def after(module: nn.Module, given: Tensor, output: Tensor) -> Tensor | None:
        if module is head or module in inner or not is_projection(module):
            return None
        rows = rows_of(given, n_prompts, N_POSITIONS)
        if took is not None and rows is not None:
            took(module, widened(rows))
        if rows_of(output, n_prompts, N_POSITIONS) is None:
            return None
        drawn = draw(module, output.shape[-1])
        return None if drawn is None else drawn.to(output).view(output.shape)

    tokens = torch.arange(n_prompts * N_POSITIONS, device=model.device).view(n_prompts, N_POSITIONS)
    with watching(model.module, after):
        model.run(tokens % model.n_embeddings, visit)


def _match(
    values: Float[Tensor, "prompt column"], signs: Float[Tensor, "prompt known"]
) -> tuple[Int[Tensor, " column"], Float[Tensor, " column"], Float[Tensor, " column"]] | None:
    """Which known column each column carries, with gain and shift: values = gain * signs[:, place] + shift.

    None where a column correlates with none of the known ones.
    """
    known, moved = signs - signs.mean(0), values - values.mean(0)
    unit, other = (part / part.norm(dim=0).clamp(min=torch.finfo(part.dtype).tiny) for part in (known, moved))
    unit, place = unit.nan_to_num(0.0, 0.0, 0.0), list[Tensor]()
    for part in other.T.split(1024):
        best = (part @ unit).abs_().max(1)
        if not bool((best.values >= LEAST_CORRELATION).all()):
            return None
        place.append(best.indices)
    found = torch.cat(place)
    gain = (moved * known[:, found]).sum(0) / known[:, found].square().sum(0)
    gain = torch.where((gain - 1).abs() <= ROUNDING, 1.0, gain)
    shift = values.mean(0) - gain * signs.mean(0)[found]
    return found, gain, torch.where(shift.abs() <= ROUNDING * gain.abs(), 0.0, shift)


def _part(values: Float[Tensor, "prompt head d"], codes: list[tuple[nn.Module, Tensor]]) -> Part | None:
    """The outputs of linear layers that these columns carry."""
    found = _match(values.flatten(1), torch.cat([signs for _, signs in codes], dim=1)) if codes else None
    if found is None:
        return None
    place, gain, shift = found
    calls = torch.cat([torch.full((signs.shape[1],), index) for index, (_, signs) in enumerate(codes)])
    columns = torch.cat([torch.arange(signs.shape[1]) for _, signs in codes])
    call = calls.to(place.device)[place]
    modules = tuple(dict.fromkeys(codes[index][0] for index in call.unique().tolist()))
    numbers = [modules.index(module) if module in modules else -1 for module, _ in codes]
    shape = values.shape[1:]
    return Part(
        modules=modules,
        source=torch.tensor(numbers, device=place.device)[call].view(shape),
        column=columns.to(place.device)[place].view(shape),
        gain=gain.view(shape),
        shift=shift.view(shape),
    )


def trace_columns(model: Model) -> dict[int, Trace]:
    """First pass, signs: which linear layers' columns q, k, v are, and which linear layer reads z."""
    random = torch.Generator().manual_seed(0)
    traces: dict[int, Trace] = {}
    codes: list[tuple[nn.Module, Tensor]] = []
    waiting: dict[int, Tensor] = {}

    def signs(width: int) -> Tensor:
        return (torch.randint(2, (N_CODES, N_POSITIONS, width), generator=random) * 2 - 1).to(model.device)

    def draw(module: nn.Module, width: int) -> Tensor:
        drawn = signs(width)
        codes.append((module, drawn[:, 0].float()))
        return drawn

    def took(module: nn.Module, rows: Tensor) -> None:
        for layer, z in list(waiting.items()):
            n_values = z.shape[1] * z.shape[2]
            found = _match(z.flatten(1), rows[:, 0].to(z)) if rows.shape[-1] >= n_values else None
            if found is not None:
                trace, (place, gain, _) = traces[layer], found
                trace.o, trace.o_row, trace.o_gain = module, place.view(z.shape[1:]), 1 / gain.view(z.shape[1:])
                del waiting[layer]

    def visit(attention: Attention) -> Tensor:
        layer = attention.layer
        parts: dict[str, Part] = {}
        for name, values in queries_keys_values(model, attention).items():
            part = _part(values[:, 0], [(module, one.to(values)) for module, one in codes])
            if part is None:
                why = "are not outputs of linear layers column by column, or were made before an earlier attention"
                raise refused(model, layer, f"its {WORDS[name]} {why}")
            parts[name] = part
        codes.clear()
        waiting.clear()
        drawn = signs(attention.z.shape[2] * attention.z.shape[3])
        if layer not in traces:
            assert attention.scores is not None
            traces[layer] = Trace(parts=parts, scale=attention.scores.rule.scale)
            waiting[layer] = drawn[:, 0].view(N_CODES, *attention.z.shape[2:]).to(widened(attention.z))
        for name, part in traces[layer].parts.items():
            if part.modules != parts[name].modules or not torch.equal(part.column, parts[name].column):
                raise refused(model, layer, "its attention is called more than once, on different projections")
        return drawn.to(attention.z).view(attention.z.shape)

    _substituted(model, N_CODES, draw, visit, took)
    for layer, trace in traces.items():
        if trace.o is None:
            raise refused(
                model, layer, "no linear layer reads its heads' results as they are (gated or otherwise changed)"
            )
    return dict(sorted(traces.items()))


def tell_factors(model: Model, traces: dict[int, Trace]) -> None:
    """Second pass, numbers of all sizes: what is not a factor, what depends on the position.

    First and last position of a prompt get the same numbers, and so do those of its twin, half a batch further, whose
    other positions differ.
    """
    random = torch.Generator().manual_seed(1)
    tolerance = tolerance_of(model)
    codes: dict[nn.Module, Tensor] = {}
    waiting: dict[int, Tensor] = {}

    def numbers(width: int) -> Tensor:
        drawn = torch.randn(2 * N_PROMPTS, N_POSITIONS, width, generator=random).to(model.device, model.dtype)
        drawn[N_PROMPTS:, 0] = drawn[:N_PROMPTS, 0]
        drawn[:, -1] = drawn[:, 0]
        return drawn

    def draw(module: nn.Module, width: int) -> Tensor:
        drawn = numbers(width)
        codes[module] = widened(drawn)
        return drawn

    def took(module: nn.Module, rows: Tensor) -> None:
        for layer, z in list(waiting.items()):
            trace = traces[layer]
            if module is trace.o:
                assert trace.o_row is not None
                assert trace.o_gain is not None
                if share_apart(rows[..., trace.o_row], trace.o_gain * z) > tolerance:
                    raise refused(
                        model,
                        layer,
                        "its heads' results are gated, normalised or rounded before the output projection",
                    )
                del waiting[layer]

    def visit(attention: Attention) -> Tensor | None:
        if attention.call:
            return None
        layer, trace = attention.layer, traces[attention.layer]
        for name, values in queries_keys_values(model, attention).items():
            part = trace.parts[name]
            if share_apart(values[N_PROMPTS:, -1], values[:N_PROMPTS, -1]) > tolerance:
                raise refused(model, layer, f"its {WORDS[name]} mix several positions after their projection")
            moved = share_apart(values[:, -1], values[:, 0]) > tolerance
            linear = share_apart(values[:, 0], part.gain * part.gather(codes)[:, 0] + part.shift) <= tolerance
            if name == "v" and (moved or not linear):
                what = "depend on the position" if linear else "are normalised or gated"
                raise refused(model, layer, f"its values {what} after their projection")
            trace.rotary = trace.rotary or moved
            trace.parts[name] = replace(part, linear=linear)
        z = numbers(attention.z.shape[2] * attention.z.shape[3]).view(attention.z.shape).to(attention.z.device)
        waiting[layer] = widened(z)
        return z

    _substituted(model, 2 * N_PROMPTS, draw, visit, took)


def balanced_signs(n_rows: int, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Signs whose mean is 0 in every row over the last axis; where that is odd one of them is 0."""
    rank = torch.rand(n_rows, *shape, generator=random).argsort(-1)
    return torch.sign(rank - (shape[-1] - 1) / 2)


def read_gains(model: Model, traces: dict[int, Trace]) -> None:
    """Third pass, where q or k are normalised: gain, bias and centring of the norm.

    Balanced signs pass any normalisation as gain * sign + bias. With a constant added to each head, what comes out
    tells whether a mean is subtracted, and over what.
    """
    random = torch.Generator().manual_seed(2)
    sent: dict[nn.Module, list[tuple[Part, Tensor]]] = {}
    drawn: dict[nn.Module, Tensor] = {}
    for trace in traces.values():
        for part in trace.parts.values():
            if not part.linear:
                signs = balanced_signs(N_CODES, part.source.shape, random)
                constants = 0.2 + torch.rand(part.source.shape[0], 1, generator=random)
                columns = torch.cat([signs, signs + constants]).to(part.gain)
                for module in part.modules:
                    sent.setdefault(module, []).append((part, columns))
    if not sent:
        return

    def draw(module: nn.Module, width: int) -> Tensor | None:
        if module not in sent:
            return None
        device = sent[module][0][0].gain.device
        drawn[module] = torch.zeros(2 * N_CODES, N_POSITIONS, width, device=device)
        for part, columns in sent[module]:
            here = part.source == part.modules.index(module)
            drawn[module][..., part.column[here]] = columns[:, None, here].to(drawn[module])
        return drawn[module]

    def visit(attention: Attention) -> None:
        parts = traces[attention.layer].parts
        for name, values in queries_keys_values(model, attention).items():
            part = parts[name]
            if part.linear or attention.call:
                continue
            plain, raised = part.gather(drawn)[:, 0].to(values).split(N_CODES)
            first, second = values[:, 0].split(N_CODES)
            spread = plain - plain.mean(0)
            gain = (first * spread).sum(0) / spread.square().sum(0)
            bias = (first - gain * plain).mean(0)
            found = [replace(part, centred=how, gain=gain, shift=bias) for how in ("no", "head", "all")]
            off = [share_apart_by_row(gain * one.centre(raised), second - bias) for one in found]
            if max(min(off), share_apart(gain * plain + bias, first)) > tolerance_of(model):
                raise refused(
                    model, attention.layer, f"its {WORDS[name]} are changed after their projection, not by a norm"
                )
            parts[name] = found[off.index(min(off))]

    _substituted(model, 2 * N_CODES, draw, visit)
