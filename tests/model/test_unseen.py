"""Modules of which a part mixes tokens in a way that is not read: refused, and not the rest taken for the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

import headscope as hs
from benchmarks.written import HEADS, Attention, D, Written, agree
from headscope.errors import UnsupportedModel
from headscope.model.load import load
from headscope.model.unseen import Unseen
from headscope.model.weights import layer_weights


class Sink(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        none = torch.zeros(*logits.shape[:-1], 1)
        return torch.cat([logits, none], -1).softmax(-1)[..., :-1] @ whole_v


class Chunks(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        starts = range(0, logits.shape[-1], 5)
        return torch.cat(
            [logits[:, :, at : at + 5].softmax(-1)[..., : at + 5] @ whole_v[:, :, : at + 5] for at in starts], 2
        )


class OtherAxis(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        return logits.mT.softmax(-2).mT @ whole_v


class ThreeFactors(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        return torch.einsum("bhqk,bhkd,de->bhqe", logits.softmax(-1), whole_v, torch.eye(self.d_head))


class Multiplied(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        return (logits.softmax(-1)[..., None] * whole_v[:, :, None]).sum(-2)


class EvenTokens(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        z = torch.zeros_like(whole_v)
        z[:, :, ::2] = logits[:, :, ::2, ::2].softmax(-1) @ whole_v[:, :, ::2]
        return z


class EvenTokensFused(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        q, k, v = (one[:, :, ::2] for one in (q, whole_k, whole_v))
        z = torch.zeros_like(whole_v)
        z[:, :, ::2] = F.scaled_dot_product_attention(query=q, key=k, value=v, is_causal=True)
        return z


class Mapped(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        return torch.vmap(torch.vmap(lambda logits, v: logits.softmax(-1) @ v))(logits, whole_v)


UNSEEN = {
    Sink: r"a softmax of shape \[3, 4, 17, 18\] mixes tokens and is not one from each of its 17 tokens to each",
    Chunks: r"a softmax of shape \[3, 4, 5, 17\] mixes tokens and is not one from each",
    OtherAxis: r"a softmax of shape \[3, 4, 17, 17\] mixes tokens over another axis than the last",
    ThreeFactors: r"or by another product than matmul, bmm or einsum of two tensors",
    Multiplied: r"or by another product than matmul, bmm or einsum of two tensors",
    EvenTokens: r"a softmax of shape \[3, 4, 9, 9\] mixes tokens and is not one from each",
    EvenTokensFused: r"a softmax of shape \[3, 4, 9, 9\] mixes tokens and is not one from each",
    Mapped: r"a softmax of shape \[17, 17\] mixes tokens",
}


@pytest.mark.parametrize("kind", UNSEEN)
@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_what_is_not_read_is_said_also_where_another_layer_is(kind, layers):
    written = Written().eval()
    for layer in layers:
        written.blocks[layer].attention.__class__ = kind
    with pytest.raises(UnsupportedModel, match=UNSEEN[kind] + ".* so part of its attention would go unseen"):
        load(written)


def test_a_factor_depends_on_the_tokens_where_it_differs_by_more_than_rounding():
    # Three prompts, the third like the first but for one part in a million; numbers that are infinite in all are equal.
    first, second = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for part in (first, second):
        part[0, 0, 0] = float("-inf")
    batch = torch.stack([first, second, first * (1 + 1e-6)])
    found = Unseen(n_rows=3, n_tokens=5)
    assert found._depends_on_tokens(batch)
    assert found._depends_on_tokens(batch.transpose(0, 1).contiguous())
    assert not found._depends_on_tokens(torch.stack([first] * 3))
    assert not found._depends_on_tokens(torch.stack([first, first * (1 + 1e-6), first * (1 - 1e-6)]))


class Cast(Attention):
    """Probabilities in float32, taken back to the precision of the rest."""

    sink = False

    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        none = torch.zeros(*logits.shape[:-1], int(self.sink))
        probabilities = torch.cat([logits.float(), none], -1).softmax(-1)
        like = torch.zeros_like(probabilities, dtype=q.dtype)
        return getattr(probabilities, self.how)(like)[..., : logits.shape[-1]] @ whole_v


@pytest.mark.parametrize("how", ["type_as", "to"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_read_is_said_in_every_precision(how, dtype):
    def made(sink):
        written = Written().eval().to(dtype)
        for block in written.blocks:
            block.attention.__class__, block.attention.how = Cast, how
        written.blocks[1].attention.sink = sink
        return written

    assert load(made(sink=False)).check.support == "exact"
    with pytest.raises(UnsupportedModel, match=UNSEEN[Sink]):
        load(made(sink=True))


class Flex(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        def causal(score, batch, head, query, key):
            return torch.where(query >= key, score, -float("inf"))

        return self.function(q, whole_k, whole_v, score_mod=causal, scale=scale)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_flex_attention_is_refused_by_name(layers, compiled):
    written = Written().eval()
    for layer in layers:
        attention = written.blocks[layer].attention
        attention.__class__ = Flex
        attention.function = torch.compile(flex_attention, backend="eager") if compiled else flex_attention
    reason = "attends by flex_attention, which is not read, so part of its attention would go unseen"
    with pytest.raises(UnsupportedModel, match=reason):
        load(written)


def test_where_no_softmax_is_seen_it_is_said_which_are():
    written = Written().eval()
    for block in written.blocks:
        block.attention = nn.Linear(D, D)
    with pytest.raises(UnsupportedModel, match=r"no softmax attention .* was seen .* one written with exp is not seen"):
        load(written)


class Longer(Attention):
    """Inputs of more than 20 tokens are attended to in chunks, or sparsely."""

    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        if q.shape[2] <= 20:
            return logits.softmax(-1) @ whole_v
        if self.how == "chunks":
            return Chunks.attend(self, q, k, v, whole_k, whole_v, logits, bias, scale)
        pattern = logits.softmax(-1)
        return torch.where(pattern > 0.1, pattern, 0.0) @ whole_v


@pytest.mark.parametrize(
    ("how", "reason"), [("chunks", "blocks.1.attention runs, and its attention is not seen"), ("sparse", "where")]
)
def test_a_layer_that_attends_otherwise_to_longer_input_is_refused_then(how, reason):
    written = Written().eval()
    attention = written.blocks[1].attention
    attention.__class__, attention.how = Longer, how
    model = load(written)
    agree(written, model)  # 13 tokens
    with pytest.raises(UnsupportedModel, match=f"attend in another way than the self-check's did: .*{reason}"):
        hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=12))


def test_layers_that_run_in_another_order_than_their_numbers_are_refused():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Written()

        def forward(self, ids):
            x = self.inner.embed(ids) + self.inner.position[: ids.shape[1]]
            for block in reversed(self.inner.blocks):
                x = block(x)
            return self.inner.unembed(x)

    with pytest.raises(UnsupportedModel, match=r"its layers run in the order \[1, 0\]"):
        load(Backwards().eval())


@pytest.mark.parametrize("how", ["noise", "counter"])
def test_an_output_that_is_another_each_time_is_refused_with_that_reason(how):
    class Unsteady(Written):
        def forward(self, ids):
            given = super().forward(ids)
            if how == "noise":
                return given + torch.randn_like(given)
            self.n = getattr(self, "n", 0) + 1
            return given * self.n

    with pytest.raises(UnsupportedModel, match="its output is another each time"):
        load(Unsteady().eval())


def test_compiled_torchscript_is_refused_with_that_reason():
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        compiled = torch.jit.script(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).eval())
    with pytest.raises(UnsupportedModel, match="holds compiled TorchScript, whose attention cannot be seen"):
        load(compiled)


class Experts(nn.Module):
    """A softmax over experts, whose results differ from token to token."""

    def __init__(self, how):
        super().__init__()
        self.how, self.router = how, nn.Linear(D, 3)
        self.experts = nn.ModuleList(nn.Linear(D, D) for _ in range(3))

    def forward(self, x):
        weight, given = self.router(x).softmax(-1), [one(x) for one in self.experts]
        match self.how:
            case "slices":
                return sum(weight[..., at : at + 1] * one for at, one in enumerate(given))
            case "matmul":
                return (weight[..., None, :] @ torch.stack(given, -2))[..., 0, :]
            case "einsum":
                return torch.einsum("bte,bted->btd", weight, torch.stack(given, -2))
            case _:
                matrices = torch.stack([one.weight for one in self.experts])
                return torch.einsum("bte,btd,efd->btf", weight, x, matrices)


class Slots(nn.Module):
    """A softmax over learned slots, which no token changes."""

    def __init__(self, expanded):
        super().__init__()
        self.expanded, self.keys, self.values = expanded, *(nn.Parameter(torch.randn(6, D)) for _ in range(2))

    def forward(self, x):
        values = self.values.expand(len(x), -1, -1) if self.expanded else self.values
        return (x @ self.keys.T).softmax(-1) @ values


@pytest.mark.parametrize("how", ["slices", "matmul", "einsum", "one einsum"])
def test_a_router_of_experts_is_not_attention(how):
    written = Written().eval()
    written.blocks[0].mlp = Experts(how)
    model = load(written)
    assert model.check.unread is None
    agree(written, model)


@pytest.mark.parametrize("expanded", [True, False])
def test_learned_slots_are_not_tokens(expanded):
    written = Written().eval()
    written.blocks[1].mlp = Slots(expanded)
    model = load(written)
    assert model.check.unread is None
    agree(written, model)


class TwoOutputs(Attention):
    """Heads' results are read by two maps."""

    def output(self, z):
        match self.how:
            case "shares":
                return 0.3 * self.o(z) + 0.7 * self.second(z)
            case "experts":
                share = torch.sigmoid(z[..., :1])
                return share * self.o(z) + (1 - share) * self.second(z)
            case "squares":
                return self.o(z) + self.second(z**2)


def two_outputs(how):
    written = Written().eval()
    attention = written.blocks[1].attention
    attention.__class__, attention.how, attention.second = TwoOutputs, how, nn.Linear(D, D)
    model = load(written)
    assert model.check.heads == {0: HEADS, 1: HEADS}
    return attention, model


@pytest.mark.parametrize("how", ["experts", "squares"])
def test_weights_are_refused_where_a_second_map_reads_the_heads(how):
    with pytest.raises(UnsupportedModel, match="more than one map reads its heads' results"):
        layer_weights(two_outputs(how)[1])


def test_two_maps_that_are_one_matrix_together_are_read_as_that():
    attention, model = two_outputs("shares")
    wanted = (0.3 * attention.o.weight + 0.7 * attention.second.weight).T.unflatten(
        0, (HEADS, -1)
    )  # [head d_v d_model]
    torch.testing.assert_close(layer_weights(model)[1].w_o, wanted, atol=1e-5, rtol=1e-5)
