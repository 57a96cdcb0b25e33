"""Each head's weights in any family, found by tracing numbers through its forward pass, never by names.

Row-vector convention, `x` being what the projections read, through the norm where there is one:

    q[h] = x @ w_q[h] + b_q[h]        k, v likewise, one per KV head
    out  = sum over h of z[h] @ w_o[h] + b_o

Tracing: every linear layer's output is replaced by random signs, different for each of its columns. A column of q that
carries a column's signs was computed from it; so fused, interleaved, scaled and repeated projections need no case of
their own, and a normalisation of q and k lets signs through too. The heads' results are replaced likewise, to see which
linear layer reads them. A second pass, with numbers of all sizes in place of signs, tells a factor from a normalisation
or a gate. In the end q, k, v and the output are
recomputed on real tokens from what was found, and nothing else may read the heads' results (`readers`). What does not
agree within the dtype's tolerance (`taps.TOLERANCE`) raises `UnsupportedModel`.

Cost: 5 forward passes over at most 64 prompts of 4 tokens, a sixth over 128 under query-key norm, and a copy of all
attention weights in float32 or wider: GPT-2 small takes 4 seconds and 113 MB on one core.

It misleads where the weights are not all there is. Under `qk_norm` they give directions. Under `rotary` q and k hold at
position 0 and are turned elsewhere. A factor on its way from the output projection to the stream (Granite), and a norm
on the stream itself, after the addition (BERT), are not in these numbers.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from headscope.errors import UnsupportedModel
from headscope.model.load import Model
from headscope.model.scope import evaluating
from headscope.model.weights.asked import asked_weights
from headscope.model.weights.layer import LayerWeights
from headscope.model.weights.norms import input_norm, output_norm
from headscope.model.weights.readers import refuse_other_readers
from headscope.model.weights.recording import (
    N_POSITIONS,
    N_PROMPTS,
    WORDS,
    Call,
    Record,
    decoder_layer,
    equal,
    linear_map,
    recorded,
    refused,
    rows_of,
    share_apart,
    share_apart_by_row,
    tolerance_of,
    widened,
)
from headscope.model.weights.tracing import Trace, read_gains, tell_factors, trace_columns


def layer_weights(model: Model) -> dict[int, LayerWeights]:
    """The weights of every layer that has attention, by layer.

    Args:
        model: What `headscope.load` gives. Left as it was; read again at each call, so edits of its weights show.

    Returns:
        Each layer's weights on the device on which the layer runs.

    Raises:
        UnsupportedModel: weights that cannot be assigned to heads, with the reason: the model hides q, k or v; they are
            not linear in one common input of the stream's width (latent attention, gates, values normalised or taken
            from another layer); or what was found does not reproduce them.
    """
    with torch.no_grad(), evaluating(model.module):
        try:
            traces = trace_columns(model)
            tell_factors(model, traces)
            read_gains(model, traces)
            return _assemble(model, traces)
        except UnsupportedModel:
            if isinstance(model.module, PreTrainedModel) or (asked := asked_weights(model)) is None:
                raise
            return asked


def _assemble(model: Model, traces: dict[int, Trace]) -> dict[int, LayerWeights]:
    blocks = {layer: decoder_layer(model, layer) for layer in traces}
    linear = {module for trace in traces.values() for part in trace.parts.values() for module in part.modules}
    linear |= {trace.o for trace in traces.values() if trace.o is not None}
    random = torch.Generator().manual_seed(3)
    tokens = torch.randint(model.n_embeddings, (N_PROMPTS, N_POSITIONS), generator=random).to(model.device)
    record = recorded(model, tokens, linear, set(blocks.values()))
    found = {layer: _layer(model, layer, trace, blocks[layer], record) for layer, trace in traces.items()}
    outputs = {layer: trace.o for layer, trace in traces.items() if trace.o is not None}
    refuse_other_readers(model, tokens, record, found, outputs)
    return found


def _layer(model: Model, layer: int, trace: Trace, block: nn.Module, record: Record) -> LayerWeights:
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
            raise refused(model, layer, f"{what} (latent attention, a concatenated input, or a factored output)")
        if not equal(call.given, x):
            raise refused(model, layer, "its queries, keys and values are not read from one and the same input")
    maps = {module: _map(model, layer, call) for module, call in readers.items()}
    rows = rows_of(widened(x), N_PROMPTS, N_POSITIONS)
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
        norm=input_norm(model, layer, block, x, before, record.begun.get(block, [])),
        out_norm=output_norm(model, layer, output.output, behind),
        qk_norm=not all(part.linear for part in trace.parts.values()),
        rotary=trace.rotary,
    )


def _map(model: Model, layer: int, call: Call) -> tuple[Tensor, Tensor]:
    found = linear_map(call, tolerance_of(model))
    if found is None:
        what = type(call.module).__name__
        raise refused(model, layer, f"a {what} does not compute what its weight says (an adapter, or quantised)")
    return found


def _projection(
    model: Model,
    layer: int,
    trace: Trace,
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
    off = share_apart(recomputed, seen) if part.linear else share_apart_by_row(recomputed, seen - part.shift)
    if off > tolerance_of(model):
        raise refused(model, layer, f"its {WORDS[name]} recomputed from what was found differ by a share of {off:.2g}")
    return matrix.transpose(0, 1).contiguous(), bias.contiguous()


def _output_projection(
    model: Model, layer: int, trace: Trace, call: Call, z: Float[Tensor, "prompt position head d_v"]
) -> tuple[Float[Tensor, "head d_v d_model"], Float[Tensor, " d_model"]]:
    """w_o and b_o, if they reproduce what was seen."""
    matrix, bias = _map(model, layer, call)
    assert trace.o_row is not None
    assert trace.o_gain is not None
    w_o = matrix[trace.o_row] * trace.o_gain[..., None]
    off = share_apart(torch.einsum("pihd,hdm->pim", z, w_o) + bias, widened(call.output).reshape(*z.shape[:2], -1))
    if off > tolerance_of(model):
        raise refused(model, layer, f"its output recomputed from its heads' results differs by a share of {off:.2g}")
    return w_o, bias.clone()
