"""Each head's weights in any family, found by tracing numbers through its forward pass, never by names.

Row-vector convention, `x` being what the projections read, through the norm where there is one:

    q[h] = x @ w_q[h] + b_q[h]        k, v likewise, one per KV head
    out  = sum over h of z[h] @ w_o[h] + b_o

Tracing: every linear layer's output is replaced by random signs, different for each of its columns. A column of q that
carries a column's signs was computed from it; so fused, interleaved, scaled and repeated projections need no case of
their own, and a normalisation of q and k lets signs through too. The heads' results are replaced likewise, to see which
linear layer reads them. A second pass, with numbers of all sizes in place of signs, tells a factor from a normalisation
or a gate. In the end q, k, v and the output are recomputed on real tokens from what was found. What does not agree
within the dtype's tolerance (`taps.TOLERANCE`) raises `UnsupportedModel`.

Cost: 3 forward passes over at most 64 prompts of 4 tokens, a fourth over 128 under query-key norm, and a copy of all
attention weights in float32 or wider: GPT-2 small takes 4 seconds and 113 MB on one core.

It misleads where the weights are not all there is. Under `qk_norm` they give directions. Under `rotary` q and k hold at
position 0 and are turned elsewhere. A factor on its way from the output projection to the stream (Granite), and a norm
on the stream itself, after the addition (BERT), are not in these numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from headscope.errors import UnsupportedModel
from headscope.model.attention import Attention
from headscope.model.hooks import is_projection
from headscope.model.interface import Visit
from headscope.model.load import Model
from headscope.model.parallel import weight_of, whole_rows
from headscope.model.replay import decoder_layers
from headscope.model.scope import evaluating, hooking
from headscope.model.selfcheck import block_of
from headscope.model.taps import TOLERANCE, Route, forward

N_CODES = 64
"""Prompts that tell columns apart: signs of two columns agree in 0.9 of them with a chance of 1e-11."""

N_POSITIONS = 4
"""Length of every prompt; the first position shows q and k before rotary embedding turns them."""

N_PROMPTS = 12
"""Prompts of real tokens on which everything is recomputed."""

LEAST_CORRELATION = 0.9
"""Of signs with what a normalisation makes of them: 1 for RMSNorm, sqrt(1 - 1 / d_head) for LayerNorm."""

ROUNDING = 1e-5
"""A factor this close to 1, and a shift this small beside its factor, are rounding in the fit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """A normalisation: out = gain * (x - mean(x) if centred else x) * (a positive number per row) + bias."""

    gain: Float[Tensor, " d_model"]
    """Up to one common positive factor."""
    bias: Float[Tensor, " d_model"]
    """Zero where there is none."""
    centred: bool
    """Whether each row's mean is subtracted: LayerNorm, not RMSNorm."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerWeights:
    """One layer's attention weights, head by head; float32 or wider, copies."""

    layer: int
    """Index of the decoder layer."""
    w_q: Float[Tensor, "head d_model d_qk"]
    """Queries. What factor the family applies to q before the dot product is inside, also the gain under `qk_norm`."""
    w_k: Float[Tensor, "kv_head d_model d_qk"]
    """Keys, likewise; in the same basis as `w_q`."""
    w_v: Float[Tensor, "kv_head d_model d_v"]
    """Values."""
    w_o: Float[Tensor, "head d_v d_model"]
    """From each head's result to the output projection's output."""
    b_q: Float[Tensor, "head d_qk"]
    """Zero where the family has none, as the other biases."""
    b_k: Float[Tensor, "kv_head d_qk"]
    """Bias of the keys."""
    b_v: Float[Tensor, "kv_head d_v"]
    """Bias of the values."""
    b_o: Float[Tensor, " d_model"]
    """Bias of the output projection; it belongs to the layer."""
    scale: float
    """Factor of `q . k`, as `Rule.scale`."""
    norm: Norm | None
    """Through which the projections read the residual stream; None where they read it raw."""
    out_norm: Norm | None
    """Applied to the projection's output before it is added to the stream; None where there is none."""
    qk_norm: bool
    """Whether q and k are normalised after their projection: then `x @ w + b` has their direction alone. The norm's
    gain and centring are inside `w_q` and `w_k`; a bias that it adds afterwards is left out."""
    rotary: bool
    """Whether q or k depend on the position after the projection."""

    def kv_head(self, head: int) -> int:
        """The KV head that a query head uses: head * n_kv // n_heads."""
        return head * self.w_k.shape[0] // self.w_q.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vocabulary:
    """How tokens enter the residual stream, and how they are read from it: the ids below both tables' lengths.

    On the embedding's device.
    """

    embedding: Float[Tensor, "token d_model"]
    """What a token adds to the stream before the first layer, with the family's factor; positions left out."""
    unembedding: Float[Tensor, "token d_model"]
    """Logits are `x @ unembedding.T`; a bias, a factor or a soft-cap on them is left out."""
    norm: Norm | None
    """Through which the unembedding reads the stream."""


def layer_weights(model: Model) -> dict[int, LayerWeights]:
    """The weights of every layer that has attention, by layer.

    Args:
        model: What `headscope.load` gives. Left as it was; read anew at each call, so edits of its weights show.

    Returns:
        Each layer's weights on the device on which the layer runs.

    Raises:
        UnsupportedModel: weights that cannot be assigned to heads, with the reason: the model hides q, k or v; they are
            not linear in one common input of the stream's width (latent attention, gates, values normalised or taken
            from another layer); or what was found does not reproduce them.
    """
    route = model.check.route
    assert route is not None, "load refuses models without a route"
    with torch.no_grad(), evaluating(model.hf):
        traces = _trace(model, route)
        _tell_factors(model, route, traces)
        _read_gains(model, route, traces)
        return _assemble(model, route, traces)


def vocabulary(model: Model) -> Vocabulary:
    """Embedding, unembedding and the norm between, by running the model on single tokens.

    Raises:
        UnsupportedModel: no LM head; an embedding or unembedding that is not of the stream's width, or not linear; or
            an embedding that is normalised before the first layer.
    """
    route = model.check.route
    assert route is not None, "load refuses models without a route"
    with torch.no_grad(), evaluating(model.hf):
        return _vocabulary(model, route)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
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
class _Trace:
    """What is known of one layer's attention so far."""

    parts: dict[str, _Part]
    """Of `q`, `k` and `v`."""
    scale: float
    o: nn.Module | None = None
    """The linear layer that reads the heads' results."""
    o_row: Tensor | None = None
    """Its input column that each place [head, d_v] of z becomes, times `o_gain`."""
    o_gain: Tensor | None = None
    rotary: bool = False


_WORDS = {"q": "queries", "k": "keys", "v": "values"}


def _refuse(model: Model, layer: int, why: str) -> NoReturn:
    raise UnsupportedModel(
        f"layer {layer} of {model.id} ({model.family}): {why}, so its weights cannot be assigned to heads; "
        "choose a model whose heads each have Q, K, V and O."
    )


def _tolerance(model: Model) -> float:
    return TOLERANCE.get(model.hf.dtype, TOLERANCE[torch.float32])


def _apart(given: Tensor, wanted: Tensor) -> float:
    """Largest difference as a share of the largest number; infinite where one is not a number."""
    difference, size = float((given - wanted).abs().max()), float(wanted.abs().max())
    if difference == 0:
        return 0.0
    share = difference / size if size > 0 else float("inf")
    return share if share == share else float("inf")


def _apart_by_row(given: Float[Tensor, "*row d"], wanted: Float[Tensor, "*row d"]) -> float:
    """The same between `wanted` and the best multiple of each row of `given`; infinite where one is not positive."""
    size = given.square().sum(-1, keepdim=True)
    factor = (given * wanted).sum(-1, keepdim=True) / size.clamp(min=torch.finfo(size.dtype).tiny)
    return float("inf") if bool(((factor <= 0) & (size > 0)).any()) else _apart(factor * given, wanted)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _rows(tensor: Tensor, n_prompts: int, n_positions: int) -> Tensor | None:
    """[prompt position column] of a tensor that has a row for every token; None where it has not."""
    width = tensor.shape[-1] if tensor.dim() else 0
    whole = tensor.numel() == n_prompts * n_positions * width > 0
    return tensor.reshape(n_prompts, n_positions, width) if whole else None


def _qkv(model: Model, attention: Attention) -> dict[str, Float[Tensor, "prompt position head d"]]:
    """A call's queries, and its keys and values that belong to tokens."""
    scores = attention.scores
    if scores is None:
        _refuse(model, attention.layer, "its own attention code hides queries, keys and values")
    n_tokens = scores.q.shape[2]
    parts = {"q": scores.q, "k": scores.k, "v": scores.v}
    return {name: _wide(part[:, :, :n_tokens].transpose(1, 2)) for name, part in parts.items()}


# --- Passes with other numbers in place of the linear layers' outputs ------------------------------------------------


@contextmanager
def _watching(model: nn.Module, after: Callable[[nn.Module, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Within the block `after(module, input, output)` runs behind each module; a tensor it returns is the output."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        given = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        result = output[0] if isinstance(output, tuple) and output else output
        if not (isinstance(given, Tensor) and isinstance(result, Tensor)):
            return None
        given, whole, own = whole_rows(module, given, result)
        replaced = after(module, given, whole)
        return own(replaced) if replaced is not None and result is output else None

    with hooking(model.modules(), after=hook):
        yield


def _substituted(
    model: Model,
    route: Route,
    n_prompts: int,
    draw: Callable[[nn.Module, int], Tensor | None],
    visit: Visit,
    took: Callable[[nn.Module, Tensor], None] | None = None,
) -> None:
    """One pass in which `draw(module, width)` [prompt position width] replaces what linear layers give.

    `took` sees each linear layer's input. The tokens do not matter, but where something reads the stream itself.
    """
    head = model.hf.get_output_embeddings()

    def after(module: nn.Module, given: Tensor, output: Tensor) -> Tensor | None:
        if module is head or not is_projection(module):
            return None
        rows = _rows(given, n_prompts, N_POSITIONS)
        if took is not None and rows is not None:
            took(module, _wide(rows))
        if _rows(output, n_prompts, N_POSITIONS) is None:
            return None
        drawn = draw(module, output.shape[-1])
        return None if drawn is None else drawn.to(output).view(output.shape)

    tokens = torch.arange(n_prompts * N_POSITIONS, device=model.device).view(n_prompts, N_POSITIONS)
    with _watching(model.hf, after):
        forward(model.hf, route, tokens % model.n_embeddings, visit)


def _match(
    values: Float[Tensor, "prompt column"], signs: Float[Tensor, "prompt known"]
) -> tuple[Int[Tensor, " column"], Float[Tensor, " column"], Float[Tensor, " column"]] | None:
    """Which known column each column carries, with gain and shift: values = gain * signs[:, place] + shift.

    None where a column correlates with none of the known ones.
    """
    known, moved = signs - signs.mean(0), values - values.mean(0)
    unit, other = (part / part.norm(dim=0).clamp(min=torch.finfo(part.dtype).tiny) for part in (known, moved))
    unit, place = unit.nan_to_num(0.0, 0.0, 0.0), []
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


def _part(values: Float[Tensor, "prompt head d"], codes: list[tuple[nn.Module, Tensor]]) -> _Part | None:
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
    return _Part(
        modules=modules,
        source=torch.tensor(numbers, device=place.device)[call].view(shape),
        column=columns.to(place.device)[place].view(shape),
        gain=gain.view(shape),
        shift=shift.view(shape),
    )


def _trace(model: Model, route: Route) -> dict[int, _Trace]:
    """First pass, signs: which linear layers' columns q, k, v are, and which linear layer reads z."""
    random = torch.Generator().manual_seed(0)
    traces: dict[int, _Trace] = {}
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
        parts: dict[str, _Part] = {}
        for name, values in _qkv(model, attention).items():
            part = _part(values[:, 0], [(module, one.to(values)) for module, one in codes])
            if part is None:
                why = "are not outputs of linear layers column by column, or were made before an earlier attention"
                _refuse(model, layer, f"its {_WORDS[name]} {why}")
            parts[name] = part
        codes.clear()
        waiting.clear()
        drawn = signs(attention.z.shape[2] * attention.z.shape[3])
        if layer not in traces:
            assert attention.scores is not None
            traces[layer] = _Trace(parts=parts, scale=attention.scores.rule.scale)
            waiting[layer] = drawn[:, 0].view(N_CODES, *attention.z.shape[2:]).to(_wide(attention.z))
        for name, part in traces[layer].parts.items():
            if part.modules != parts[name].modules or not torch.equal(part.column, parts[name].column):
                _refuse(model, layer, "its attention is called more than once, on different projections")
        return drawn.to(attention.z).view(attention.z.shape)

    _substituted(model, route, N_CODES, draw, visit, took)
    for layer, trace in traces.items():
        if trace.o is None:
            _refuse(model, layer, "no linear layer reads its heads' results as they are (gated or otherwise changed)")
    return dict(sorted(traces.items()))


def _tell_factors(model: Model, route: Route, traces: dict[int, _Trace]) -> None:
    """Second pass, numbers of all sizes: what is not a factor, what depends on the position.

    First and last position of a prompt get the same numbers, and so do those of its twin, half a batch further, whose
    other positions differ.
    """
    random = torch.Generator().manual_seed(1)
    tolerance = _tolerance(model)
    codes: dict[nn.Module, Tensor] = {}
    waiting: dict[int, Tensor] = {}

    def numbers(width: int) -> Tensor:
        drawn = torch.randn(2 * N_PROMPTS, N_POSITIONS, width, generator=random).to(model.device, model.hf.dtype)
        drawn[N_PROMPTS:, 0] = drawn[:N_PROMPTS, 0]
        drawn[:, -1] = drawn[:, 0]
        return drawn

    def draw(module: nn.Module, width: int) -> Tensor:
        drawn = numbers(width)
        codes[module] = _wide(drawn)
        return drawn

    def took(module: nn.Module, rows: Tensor) -> None:
        for layer, z in list(waiting.items()):
            trace = traces[layer]
            if module is trace.o:
                assert trace.o_row is not None
                assert trace.o_gain is not None
                if _apart(rows[..., trace.o_row], trace.o_gain * z) > tolerance:
                    _refuse(model, layer, "its heads' results are gated or normalised before the output projection")
                del waiting[layer]

    def visit(attention: Attention) -> Tensor | None:
        if attention.call:
            return None
        layer, trace = attention.layer, traces[attention.layer]
        for name, values in _qkv(model, attention).items():
            part = trace.parts[name]
            if _apart(values[N_PROMPTS:, -1], values[:N_PROMPTS, -1]) > tolerance:
                _refuse(model, layer, f"its {_WORDS[name]} mix several positions after their projection")
            moved = _apart(values[:, -1], values[:, 0]) > tolerance
            linear = _apart(values[:, 0], part.gain * part.gather(codes)[:, 0] + part.shift) <= tolerance
            if name == "v" and (moved or not linear):
                what = "depend on the position" if linear else "are normalised or gated"
                _refuse(model, layer, f"its values {what} after their projection")
            trace.rotary = trace.rotary or moved
            trace.parts[name] = replace(part, linear=linear)
        z = numbers(attention.z.shape[2] * attention.z.shape[3]).view(attention.z.shape).to(attention.z.device)
        waiting[layer] = _wide(z)
        return z

    _substituted(model, route, 2 * N_PROMPTS, draw, visit, took)


def _balanced(n_rows: int, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """Signs whose mean is 0 in every row over the last axis; where that is odd one of them is 0."""
    rank = torch.rand(n_rows, *shape, generator=random).argsort(-1)
    return torch.sign(rank - (shape[-1] - 1) / 2)


def _read_gains(model: Model, route: Route, traces: dict[int, _Trace]) -> None:
    """Third pass, where q or k are normalised: gain, bias and centring of the norm.

    Balanced signs pass any normalisation as gain * sign + bias. With a constant added to each head, what comes out
    tells whether a mean is subtracted, and over what.
    """
    random = torch.Generator().manual_seed(2)
    sent: dict[nn.Module, list[tuple[_Part, Tensor]]] = {}
    drawn: dict[nn.Module, Tensor] = {}
    for trace in traces.values():
        for part in trace.parts.values():
            if not part.linear:
                signs = _balanced(N_CODES, part.source.shape, random)
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
        for name, values in _qkv(model, attention).items():
            part = parts[name]
            if part.linear or attention.call:
                continue
            plain, raised = part.gather(drawn)[:, 0].to(values).split(N_CODES)
            first, second = values[:, 0].split(N_CODES)
            spread = plain - plain.mean(0)
            gain = (first * spread).sum(0) / spread.square().sum(0)
            bias = (first - gain * plain).mean(0)
            found = [replace(part, centred=how, gain=gain, shift=bias) for how in ("no", "head", "all")]
            off = [_apart_by_row(gain * one.centre(raised), second - bias) for one in found]
            if max(min(off), _apart(gain * plain + bias, first)) > _tolerance(model):
                _refuse(model, attention.layer, f"its {_WORDS[name]} are changed after their projection, not by a norm")
            parts[name] = found[off.index(min(off))]

    _substituted(model, route, 2 * N_CODES, draw, visit)


# --- The pass on real tokens -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A module that ran, with what it took and gave."""

    module: nn.Module
    given: Tensor
    output: Tensor


@dataclass(slots=True, eq=False)
class _Record:
    """One pass of the model."""

    calls: list[_Call] = field(default_factory=list)
    """In the order in which they ended, of those modules that keep the shape or were asked for."""
    begun: dict[nn.Module, list[Tensor]] = field(default_factory=dict)
    """What the decoder layers took, in the order in which they began."""
    seen: dict[int, tuple[int, dict[str, Tensor]]] = field(default_factory=dict)
    """For each layer how many calls ended before its attention, and its q, k, v and z."""


def _recorded(
    model: Model, route: Route, tokens: Int[Tensor, "prompt position"], modules: set[nn.Module], blocks: set[nn.Module]
) -> _Record:
    """One pass as it is."""
    record = _Record()

    def after(module: nn.Module, given: Tensor, output: Tensor) -> None:
        if module in modules or (given.shape == output.shape and given.dim() > 1):
            record.calls.append(_Call(module, given.detach().to(output.device, copy=True), output.detach().clone()))

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        if isinstance(given, Tensor):
            record.begun.setdefault(module, []).append(given.detach().clone())

    def visit(attention: Attention) -> None:
        if not attention.call and attention.scores is not None:
            parts = _qkv(model, attention) | {"z": _wide(attention.z)}
            record.seen[attention.layer] = len(record.calls), {name: part.clone() for name, part in parts.items()}

    with _watching(model.hf, after), hooking(blocks, before=begin):
        forward(model.hf, route, tokens, visit)
    return record


def _block(model: Model, route: Route, layer: int) -> nn.Module:
    """The decoder layer around an attention module."""
    name = next(name for name, number in route.layers.items() if number == layer)
    return model.hf.get_submodule(block_of(name))


def _assemble(model: Model, route: Route, traces: dict[int, _Trace]) -> dict[int, LayerWeights]:
    blocks = {layer: _block(model, route, layer) for layer in traces}
    linear = {module for trace in traces.values() for part in trace.parts.values() for module in part.modules}
    linear |= {trace.o for trace in traces.values() if trace.o is not None}
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(model.n_embeddings, (N_PROMPTS, N_POSITIONS), generator=random).to(model.device)
    record = _recorded(model, route, tokens, linear, set(blocks.values()))
    return {layer: _layer(model, layer, trace, blocks[layer], record) for layer, trace in traces.items()}


def _layer(model: Model, layer: int, trace: _Trace, block: nn.Module, record: _Record) -> LayerWeights:
    start, seen = record.seen[layer]
    before, behind = record.calls[:start], record.calls[start:]
    output = next(call for call in behind if call.module is trace.o)
    d_model = output.output.shape[-1]
    wanted = {module for part in trace.parts.values() for module in part.modules}
    readers = {call.module: call for call in before if call.module in wanted}
    x = next(iter(readers.values())).given
    for module, call in readers.items():
        if call.given.shape[-1] != d_model:
            what = f"a {type(module).__name__} reads {call.given.shape[-1]} numbers, not the {d_model} that are written"
            _refuse(model, layer, f"{what} (latent attention, a concatenated input, or a factored output)")
        if not _equal(call.given, x):
            _refuse(model, layer, "its queries, keys and values are not read from one and the same input")
    maps = {module: _map(model, layer, call) for module, call in readers.items()}
    rows = _rows(_wide(x), N_PROMPTS, N_POSITIONS)
    assert rows is not None, "the linear layers had a row for every token"
    parts = {name: _projection(model, layer, trace, name, maps, rows, seen[name]) for name in trace.parts}
    w_o, b_o = _output_projection(model, layer, trace, output, seen["z"])
    return LayerWeights(
        layer=layer,
        w_q=parts["q"][0],
        w_k=parts["k"][0],
        w_v=parts["v"][0],
        w_o=w_o,
        b_q=parts["q"][1],
        b_k=parts["k"][1],
        b_v=parts["v"][1],
        b_o=b_o,
        scale=trace.scale,
        norm=_input_norm(model, layer, block, x, before, record.begun.get(block, [])),
        out_norm=_output_norm(model, layer, output.output, behind),
        qk_norm=not all(part.linear for part in trace.parts.values()),
        rotary=trace.rotary,
    )


def _linear_map(call: _Call, tolerance: float) -> tuple[Tensor, Tensor] | None:
    """Matrix [in, out] and bias of a linear layer, whichever way it stores them, if they give what it gave."""
    stored = weight_of(call.module)
    if not stored.is_floating_point():
        return None
    x, y, weight = _wide(call.given), _wide(call.output), _wide(stored)
    biased = isinstance(getattr(call.module, "bias", None), Tensor)
    shift = _wide(weight_of(call.module, "bias")) if biased else weight.new_zeros(y.shape[-1])
    for matrix in (weight.T, weight):
        if matrix.shape == (x.shape[-1], y.shape[-1]) and _apart(x @ matrix + shift, y) <= tolerance:
            return matrix, shift
    return None


def _map(model: Model, layer: int, call: _Call) -> tuple[Tensor, Tensor]:
    found = _linear_map(call, _tolerance(model))
    if found is None:
        what = type(call.module).__name__
        _refuse(model, layer, f"a {what} does not compute what its weight says (an adapter, or quantised)")
    return found


def _projection(
    model: Model,
    layer: int,
    trace: _Trace,
    name: str,
    maps: dict[nn.Module, tuple[Tensor, Tensor]],
    x: Float[Tensor, "prompt position d_model"],
    seen: Float[Tensor, "prompt position head d"],
) -> tuple[Float[Tensor, "head d_model d"], Float[Tensor, "head d"]]:
    """W and b of q, k or v, if they reproduce what was seen."""
    part = trace.parts[name]
    matrix, bias = (part.gain * part.centre(part.gather({m: maps[m][i] for m in part.modules})) for i in (0, 1))
    if part.linear:
        bias = bias + part.shift
    known = slice(0, 1) if trace.rotary and name != "v" else slice(None)
    seen = seen[:, known]
    recomputed = torch.einsum("pim,mhd->pihd", x[:, known], matrix) + bias
    off = _apart(recomputed, seen) if part.linear else _apart_by_row(recomputed, seen - part.shift)
    if off > _tolerance(model):
        _refuse(model, layer, f"its {_WORDS[name]} recomputed from what was found differ by a share of {off:.2g}")
    return matrix.transpose(0, 1).contiguous(), bias.contiguous()


def _output_projection(
    model: Model, layer: int, trace: _Trace, call: _Call, z: Float[Tensor, "prompt position head d_v"]
) -> tuple[Float[Tensor, "head d_v d_model"], Float[Tensor, " d_model"]]:
    """w_o and b_o, if they reproduce what was seen."""
    matrix, bias = _map(model, layer, call)
    assert trace.o_row is not None
    assert trace.o_gain is not None
    w_o = matrix[trace.o_row] * trace.o_gain[..., None]
    off = _apart(torch.einsum("pihd,hdm->pim", z, w_o) + bias, _wide(call.output).reshape(*z.shape[:2], -1))
    if off > _tolerance(model):
        _refuse(model, layer, f"its output recomputed from its heads' results differs by a share of {off:.2g}")
    return w_o, bias.clone()


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.numel() == second.numel() and torch.equal(first.reshape(second.shape), second.to(first.device))


def _input_norm(
    model: Model, layer: int, block: nn.Module, x: Tensor, before: list[_Call], stream: list[Tensor]
) -> Norm | None:
    """The norm between the decoder layer's input and `x`; None where they are the same."""
    if any(_equal(x, one) for one in stream):
        return None
    inside = set(block.modules())
    for call in reversed(before):
        if call.module in inside and _equal(call.output, x) and any(_equal(call.given, one) for one in stream):
            norm = _read_norm(call.module, call.given)
            if norm is not None:
                return norm
    _refuse(model, layer, "what its projections read is neither the residual stream nor a normalisation of it")


def _output_norm(model: Model, layer: int, output: Tensor, behind: list[_Call]) -> Norm | None:
    """The norm that reads the projection's output alone; None where nothing does."""
    for call in behind:
        if _equal(call.given, output) and not _equal(call.output, output):
            norm = _read_norm(call.module, call.given)
            if norm is None:
                _refuse(model, layer, f"a {type(call.module).__name__}, which is no norm, changes its output")
            return norm
    return None


def _read_norm(module: nn.Module, rows: Tensor) -> Norm | None:
    """What a module does to rows like these, as a `Norm`; None where it does something else.

    Asked of a wide copy with balanced signs of the rows' own size, which a normalisation gives back as
    gain * sign + bias; the answer is then tried on the rows.
    """
    d_model = rows.shape[-1]
    if sum(parameter.numel() for parameter in module.parameters()) > 4 * d_model:
        return None
    rows = _wide(rows).reshape(1, -1, d_model)
    module = copy.deepcopy(module).to(rows.dtype)
    signs = _balanced(N_CODES, [d_model], torch.Generator().manual_seed(4)).to(rows)[None]
    size = rows.square().mean().sqrt()
    try:
        there, back, raised = (_wide(module(x)) for x in (signs * size, -signs * size, (signs + 1) * size))
        out = _wide(module(rows))
    except TypeError:  # it needs more than the rows
        return None
    bias = ((there + back) / 2).mean(1)[0]
    gain = ((there - bias) * signs).mean(1)[0]
    centred = _apart(raised, there) <= TOLERANCE[torch.float32]
    seen = rows - rows.mean(-1, keepdim=True) if centred else rows
    off = max(_apart(gain * signs + bias, there), _apart_by_row(gain * seen, out - bias))
    return Norm(gain=gain, bias=bias, centred=centred) if off <= TOLERANCE[torch.float32] else None


# --- Vocabulary ------------------------------------------------------------------------------------------------------


def _refuse_vocabulary(model: Model, why: str) -> NoReturn:
    raise UnsupportedModel(
        f"{model.id} ({model.family}): {why}, so its tokens cannot be read off the residual stream; "
        "choose a model with one embedding and one unembedding of the stream's width."
    )


def _vocabulary(model: Model, route: Route) -> Vocabulary:
    head = model.hf.get_output_embeddings()
    if head is None:
        _refuse_vocabulary(model, "it has no language-model head")
    random = torch.Generator().manual_seed(5)
    tokens = torch.randperm(model.n_embeddings, generator=random)[:N_CODES, None].to(model.device)
    blocks = decoder_layers(model) or [_block(model, route, min(route.layers.values()))]
    record = _recorded(model, route, tokens, {head}, {blocks[0]})
    first = record.begun.get(blocks[0], [])
    stream = _rows(_wide(first[0]), len(tokens), 1) if first else None
    last = next((call for call in reversed(record.calls) if call.module is head), None)
    final = _rows(last.given, len(tokens), 1) if last else None
    if stream is None or last is None or final is None:
        _refuse_vocabulary(model, "its first layer, or its language-model head, does not see one row for every token")
    embedding: Any = model.hf.get_input_embeddings()
    table = _wide(weight_of(embedding))
    widths = table.shape[1], stream.shape[-1], final.shape[-1]
    if len(set(widths)) > 1:
        _refuse_vocabulary(model, "its embedding, stream and unembedding are {}, {} and {} wide".format(*widths))
    known, entered = (rows - rows.mean(0) for rows in (table[tokens[:, 0]], stream[:, 0].to(table)))
    factor = (known * entered).sum() / known.square().sum()
    if _apart(factor * known, entered) > _tolerance(model):
        _refuse_vocabulary(model, "its embedding is normalised or otherwise changed before the first layer")
    unembedding = _linear_map(last, _tolerance(model))
    if unembedding is None:
        _refuse_vocabulary(model, "its unembedding does not compute what its weight says")
    n_tokens = min(len(table), unembedding[0].shape[1])
    return Vocabulary(
        embedding=table[:n_tokens] * factor,
        unembedding=unembedding[0].T[:n_tokens].to(table.device, copy=True),
        norm=_final_norm(model, last.given, record.calls, blocks),
    )


def _final_norm(model: Model, final: Tensor, calls: list[_Call], blocks: list[nn.Module]) -> Norm | None:
    """The norm between the last layer's output and what the unembedding reads, up to a factor."""
    written = [call.output for call in calls if call.module in blocks]
    if any(_parallel(final, one) for one in written):
        return None
    for call in reversed(calls):
        if _parallel(final, call.output) and any(_equal(call.given, one) for one in written):
            norm = _read_norm(call.module, call.given)
            if norm is not None:
                return norm
    _refuse_vocabulary(model, "what its unembedding reads is neither the residual stream nor a normalisation of it")


def _parallel(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are equal up to one positive factor."""
    if first.numel() != second.numel():
        return False
    return (
        _apart_by_row(_wide(second.to(first.device)).reshape(1, -1), _wide(first).reshape(1, -1))
        <= TOLERANCE[torch.float32]
    )
