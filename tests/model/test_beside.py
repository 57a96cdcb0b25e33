"""What mixes tokens beside the attention that is read is found, in whatever way it does, and nothing elsewhere."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from benchmarks.written import HEADS, Attention, D, Written
from headscope.evidence.check.measure import agreement
from headscope.heads import Unread
from headscope.model.beside import CHANGED, kept_places, with_other_tokens
from headscope.model.load import load
from headscope.model.names import layer_of

SAID = r"; tokens are also mixed {} in a way that is not read \(convolution, recurrence, linear attention or the like\)"


def before(x, distance=1):
    """What is that many places before, and nothing where there is none."""
    return F.pad(x, (0, 0, distance, 0))[..., : x.shape[-2], :]


class ByExp(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        weight = (logits - logits.amax(-1, keepdim=True)).exp()
        return (weight / weight.sum(-1, keepdim=True)) @ whole_v


class ByLog(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        return logits.log_softmax(-1).exp() @ whole_v


class Linear(Attention):
    def attend(self, q, k, v, whole_k, whole_v, logits, bias, scale):
        q, k = F.elu(q) + 1, F.elu(whole_k) + 1
        sums = torch.einsum("bhtd,bhte->bhtde", k, whole_v).cumsum(2)
        return torch.einsum("bhtd,bhtde->bhte", q, sums) / (q * k.cumsum(2)).sum(-1, keepdim=True)


class ShiftedInput(Attention):
    def project(self, x):
        return super().project(0.7 * x + 0.3 * before(x))


class ShiftedKeys(Attention):
    def project(self, x):
        q, k, v = super().project(x)
        return q, k + 0.5 * before(k), v


class ShiftedValues(Attention):
    def project(self, x):
        q, k, v = super().project(x)
        return q, k, v + 0.5 * before(v)


class ShiftedOutput(Attention):
    def output(self, z):
        given = super().output(z)
        return given + 0.5 * before(given)


class Mean(nn.Module):
    def forward(self, x):
        return x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv1d(D, D, 3, groups=D, padding=2)

    def forward(self, x):
        return self.inner(x.mT)[..., : x.shape[1]].mT


class Recurrence(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.GRU(D, D, batch_first=True)

    def forward(self, x):
        return self.inner(x)[0]


class Before(nn.Module):
    def __init__(self, distance):
        super().__init__()
        self.distance = distance

    def forward(self, x):
        return x + 0.1 * before(x, self.distance)


class Equal(nn.Module):
    """Adds what follows the last earlier place that holds just the same."""

    def forward(self, x):
        same = (x[:, :, None] == x[:, None]).all(-1).tril(-2)
        last = torch.where(same, torch.arange(x.shape[1]), -1).amax(-1)
        return x + torch.where(last[..., None] >= 0, x.gather(1, (last + 1)[..., None].expand_as(x)), 0.0)


class Choosing(nn.Module):
    """Only the half of the tokens that scores highest passes through, so each depends on the others."""

    def __init__(self):
        super().__init__()
        self.score, self.inner = nn.Linear(D, 1), nn.Linear(D, D)

    def forward(self, x):
        score = self.score(x)[..., 0]
        chosen = score >= score.topk(x.shape[1] // 2, dim=-1).values[:, -1:]
        return torch.where(chosen[..., None], self.inner(x), 0.0)


def with_attention(kind, *layers):
    torch.manual_seed(0)
    written = Written().eval()
    for layer in layers:
        written.blocks[layer].attention.__class__ = kind
    return written


def with_module(kind, layer, place):
    torch.manual_seed(0)
    written = Written().eval()
    setattr(written.blocks[layer], place, kind())
    return written


@pytest.mark.parametrize("kind", [ByExp, ByLog, Linear])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_that_attends_in_a_way_that_is_not_read_is_named(kind, layer):
    model = load(with_attention(kind, layer))
    assert (model.check.support, model.check.heads) == ("exact", {1 - layer: HEADS})
    assert model.check.unread == Unread(layers=(layer,), outside=())
    assert model.n_layers == 2  # also where the last layer is the one that is not read
    assert model.check.reason.endswith(SAID.format(f"in layer {layer}").replace("\\", ""))


@pytest.mark.parametrize("kind", [Mean, Convolution, Recurrence])
@pytest.mark.parametrize(("place", "heads"), [("attention", {1: HEADS}), ("mlp", {0: HEADS, 1: HEADS})])
def test_a_layer_that_mixes_without_a_softmax_is_named(kind, place, heads):
    model = load(with_module(kind, 0, place))
    assert (model.check.support, model.check.heads) == ("exact", heads)
    assert model.check.unread == Unread(layers=(0,), outside=())


@pytest.mark.parametrize("kind", [ShiftedInput, ShiftedKeys, ShiftedValues, ShiftedOutput])
def test_heads_that_read_or_write_the_token_before_too_are_named(kind):
    for layers in ((0,), (0, 1)):
        model = load(with_attention(kind, *layers))
        assert model.check.heads == {0: HEADS, 1: HEADS}
        assert model.check.unread == Unread(layers=layers, outside=())


@pytest.mark.parametrize("attend", ["softmax", "sdpa", "by hand", "batched"])
def test_values_of_the_token_before_are_named_where_queries_and_keys_are_hidden_too(attend):
    torch.manual_seed(0)
    written = Written(attend=attend, twist="none" if attend != "softmax" else "talking before").eval()
    assert load(written).check.unread is None
    written.blocks[1].attention.__class__ = ShiftedValues
    assert load(written).check.unread == Unread(layers=(1,), outside=())


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("mpt", "transformer.blocks.1.norm_1"),
        ("mpt", "transformer.blocks.1.attn.Wqkv"),
        ("bloom", "transformer.h.1.mlp"),
    ],
)
def test_families_whose_own_code_is_watched_are_asked_module_by_module(family, part, monkeypatch):
    hf = tiny_causal_lm(family)
    assert load(hf).check.unread is None
    changed = hf.get_submodule(part)
    own = changed.forward
    monkeypatch.setattr(changed, "forward", lambda *given: own(*given) + 0.3 * before(own(*given)))
    assert load(hf).check.unread == Unread(layers=(1,), outside=())


@pytest.mark.parametrize("length", [2, 3, 5, 10])
def test_short_contexts(length):
    assert load(Written().eval(), max_tokens=length).check.unread is None
    written = with_module(lambda: Before(1), 1, "mlp")
    assert load(written, max_tokens=length).check.unread == Unread(layers=(1,), outside=())


@pytest.mark.parametrize("distance", range(1, 17))
def test_a_token_at_any_distance_before_is_found(distance):
    # Of places 0, 2, 3, 7, 8 and 12, at least one is this far before a place whose token stays.
    assert any(place - distance in CHANGED for place in kept_places(17))
    assert load(with_module(lambda: Before(distance), 1, "mlp")).check.unread == Unread(layers=(1,), outside=())


@pytest.mark.parametrize("kind", [Equal, Choosing])
def test_mixing_by_what_the_tokens_are_is_found(kind):
    torch.manual_seed(0)
    written = Written(positions="rotary").eval()
    written.embed = nn.Sequential(written.embed, kind())
    assert load(written).check.unread == Unread(layers=(), outside=("embed.1",))


def test_several_layers_are_named_as_ranges_and_what_is_between_them_by_its_module():
    torch.manual_seed(0)
    written = Written().eval()
    written.blocks = nn.ModuleList(block for _ in range(3) for block in Written().blocks)
    for layer in (0, 1, 2, 5):
        written.blocks[layer].mlp = Mean()
    written.unembed = nn.Sequential(Convolution(), written.unembed)
    model = load(written.eval())
    assert model.check.unread == Unread(layers=(0, 1, 2, 5), outside=("unembed.0",))
    assert "mixed in layers 0-2, 5 and outside of its numbered layers (unembed.0) in a way" in model.check.reason


class OneByOne(nn.Module):
    """Layers that have no number: what is not read may be one of them."""

    def __init__(self, mixes):
        super().__init__()
        self.inner, self.first, self.mixes = Written(), Mean(), mixes

    def forward(self, ids):
        x = self.inner.embed(ids) + self.inner.position[: ids.shape[1]]
        if self.mixes:
            x = x + self.first(x)
        return self.inner.unembed(x + self.attend(x))

    def attend(self, x):
        n, d = x.shape[1], D // HEADS
        heads = x.unflatten(-1, (HEADS, d)).transpose(1, 2)
        z = F.scaled_dot_product_attention(heads, heads, heads, is_causal=True).transpose(1, 2)
        return F.linear(z.reshape(-1, n, D), self.inner.unembed.weight[:D])


def test_layers_without_a_number_are_counted_by_what_is_read_and_that_is_said():
    torch.manual_seed(0)
    assert load(OneByOne(False).eval()).check.unread is None
    check = load(OneByOne(True).eval()).check
    assert (check.support, check.heads, check.unread) == ("degraded", {0: HEADS}, Unread(layers=(), outside=("first",)))
    assert check.reason.endswith("or the like), so layers are counted by the attention that is read")


class Placed(nn.Module):
    """The past's mean in a module of its own, whose axes are in another order."""

    def __init__(self, axes):
        super().__init__()
        self.inner, self.mean, self.axes = Written(), nn.Module(), axes
        self.mean.forward = self.average

    def average(self, x):
        if self.axes == "flat":
            return Mean()(x.unflatten(0, (-1, self.n))).flatten(0, 1)
        return Mean()(x.transpose(0, 1)).transpose(0, 1)

    def forward(self, ids):
        x, self.n = self.inner.embed(ids) + self.inner.position[: ids.shape[1]], ids.shape[1]
        if self.axes == "flat":
            x = self.mean(x.flatten(0, 1)).unflatten(0, (-1, self.n))
        else:
            x = self.mean(x.transpose(0, 1)).transpose(0, 1)
        for block in self.inner.blocks:
            x = block(x)
        return self.inner.unembed(x)


@pytest.mark.parametrize("axes", ["position first", "flat"])
def test_a_module_is_found_in_other_orders_of_axes(axes):
    torch.manual_seed(0)
    assert load(Placed(axes).eval()).check.unread == Unread(layers=(), outside=("mean",))


def test_a_forward_that_mixes_by_itself_is_found():
    written = Written().eval()

    def forward(ids):
        logits = written(ids)
        return logits + 0.5 * before(logits)

    check = load(written, forward=forward).check
    assert check.unread == Unread(layers=(), outside=("",))
    assert "mixed outside of its numbered layers in a way" in check.reason


class Between(Written):
    """Tokens are mixed by code between the blocks, not by a module."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, ids):
        x = self.embed(ids) + self.position[: ids.shape[1]]
        if self.how == "pairs of ids":
            x = x + self.embed((ids + 7 * F.pad(ids, (1, 0))[:, :-1]) % 30)
        elif self.how == "positions by ids":
            x = x + self.position[(ids % 2).cumsum(1)]
        first = x[:, :1]
        for block in self.blocks:
            x = block(x + 0.5 * first if self.how == "first token" else x)
        return self.unembed(x)


@pytest.mark.parametrize("how", ["pairs of ids", "positions by ids", "first token"])
def test_layers_that_get_tokens_mixed_between_them_are_not_named_for_it(how):
    torch.manual_seed(0)
    assert load(Between(how).eval()).check.unread == Unread(layers=(), outside=("",))


@pytest.mark.parametrize(
    "choices", [{}, {"attend": "sdpa"}, {"positions": "alibi"}, {"block": "parallel"}, {"n_kv": 1}]
)
def test_nothing_is_said_of_a_model_in_which_only_its_heads_mix(choices):
    check = load(Written(**choices).eval()).check
    assert check.unread is None
    assert "mixed" not in check.reason


@pytest.mark.parametrize(
    ("family", "heads", "layers"),
    [
        ("jamba", {1}, (0,)),  # Mamba
        ("recurrent_gemma", {2}, (0, 1)),  # recurrence
        ("lfm2", {1}, (0,)),  # convolution
        ("qwen3_next", {1}, (0,)),  # linear attention
        ("falcon_h1", {0, 1}, (0, 1)),  # Mamba and attention in one layer
        ("zaya", {0, 1}, (0, 1)),  # keys and values of neighbouring tokens
    ],
)
def test_hybrids_of_transformers_are_read_and_say_which_layers_are_not(family, heads, layers):
    model = load(tiny_causal_lm(family))
    assert (model.check.support, set(model.check.heads)) == ("exact", heads)
    assert model.check.unread == Unread(layers=layers, outside=())


@pytest.mark.parametrize("family", ["gpt2", "llama", "mixtral", "gemma3n_text", "deepseek_v32", "bloom", "diffllama"])
def test_families_whose_tokens_meet_in_their_heads_alone_say_nothing(family):
    assert load(tiny_causal_lm(family)).check.unread is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rounding_is_not_mixing(dtype):
    assert load(tiny_causal_lm("llama").to(dtype)).check.unread is None
    assert load(tiny_causal_lm("falcon_h1").to(dtype)).check.unread == Unread(layers=(0, 1), outside=())


def test_it_is_in_every_result():
    model = load(with_attention(Linear, 0))
    document = json.loads(agreement(model).to_json())
    assert document["model"]["unread"] == {"layers": [0], "outside": []}
    assert "mixed in layer 0 in a way that is not read" in document["reason"]
    scan = hs.scan(model, probe=hs.repeated_tokens(model, n_prompts=2, period=8))
    assert scan.model.unread == Unread(layers=(0,), outside=())
    assert json.loads(agreement(load(Written().eval())).to_json())["model"]["unread"] is None


def test_the_module_and_the_random_state_are_as_they_were():
    written = with_attention(Linear, 0).train()
    hooks = {name: (len(one._forward_hooks), len(one._forward_pre_hooks)) for name, one in written.named_modules()}
    weights = {name: one.clone() for name, one in written.state_dict().items()}
    state = torch.get_rng_state()
    assert load(written).check.unread is not None
    assert torch.equal(torch.get_rng_state(), state)
    assert written.training
    assert hooks == {
        name: (len(one._forward_hooks), len(one._forward_pre_hooks)) for name, one in written.named_modules()
    }
    for name, one in written.state_dict().items():
        assert torch.equal(one, weights[name])


def test_other_tokens_are_those_of_later_places_so_that_some_repeat():
    prompt = torch.arange(100, 117)
    other = with_other_tokens(prompt, frozenset({101, 108}), 200)
    changed = [place for place in range(17) if other[place] != prompt[place]]
    assert changed == [place for place in CHANGED if place != 8]  # 108 is never replaced
    assert all(int(other[place]) - 100 in kept_places(17) for place in changed)
    assert all(int(other[place]) - 100 > place for place in changed)
    assert 101 not in other[list(CHANGED)]
    assert with_other_tokens(torch.tensor([1, 1, 1]), frozenset(), 3).tolist() == [2, 1, 2]


def test_a_module_s_layer_is_that_of_the_stack_that_holds_attention():
    layers = {"a.layers.0.attn": 0, "a.layers.2.attn": 2, "b.layers.1.attn": 4}  # the second stack starts at 3
    assert layer_of("a.layers.1.conv", layers) == 1
    assert layer_of("b.layers.0", layers) == 3
    assert layer_of("a.layers.3.conv", layers) is None  # would be the second stack's first
    assert layer_of("embed", layers) is None
    assert layer_of("c.layers.0", layers) is None
