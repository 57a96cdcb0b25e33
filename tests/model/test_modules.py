"""Models written by hand: right against their own softmax and their own W_O, or refused with the true reason."""

from __future__ import annotations

import copy
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import headscope as hs
from benchmarks.written import CHOICES, CONTEXT, HEADS, REFUSED, VOCABULARY, D, Written, agree
from headscope.errors import UnsupportedModel
from headscope.model.backbone import stated_context
from headscope.model.load import load
from headscope.model.selfcheck import _tokens
from headscope.model.weights import layer_weights

RIGHT = {
    "separate": {},
    "fused": {"project": "fused"},
    "einsum, all weights parameters": {"project": "parameters", "attend": "einsum", "out": "einsum"},
    "F.linear": {"out": "F.linear"},
    "matmul with a parameter": {"out": "matmul"},
    "tensordot": {"out": "tensordot"},
    "multiplied and summed": {"out": "multiplied"},
    "heads one after another": {"attend": "by hand"},
    "scaled-dot-product": {"attend": "sdpa"},
    "heads on the batch axis": {"attend": "batched"},
    "batch on the heads' axis": {"attend": "batched heads first"},
    "(d h)": {"order": "d h"},
    "(d h), fused, heads on the batch axis": {"order": "d h", "project": "fused", "attend": "batched"},
    "ALiBi": {"positions": "alibi"},
    "rotary": {"positions": "rotary", "project": "fused"},
    "grouped queries": {"n_kv": 2, "attend": "sdpa"},
    "one key-value head": {"n_kv": 1},
    "parallel block": {"block": "parallel"},
    "post-norm": {"block": "post"},
    "tied": {"tied": True},
    "logits behind a loss in a tuple": {"gives": "tuple"},
    "logits in a dict": {"gives": "dict"},
    "gated results": {"twist": "gate"},
    "heads mixed before the softmax": {"twist": "talking before"},
}


@pytest.mark.parametrize("name", RIGHT)
def test_modules_written_by_hand_are_right(name):
    written = Written(**RIGHT[name]).eval()
    model = load(written)
    assert model.check.heads == {0: 4, 1: 4}
    assert (model.n_embeddings, model.n_predicted) == (VOCABULARY, VOCABULARY)
    assert model.max_tokens == (CONTEXT if written.position is not None else None)
    if name in ("heads mixed before the softmax", "heads one after another"):  # no single q and k make these logits
        assert model.check.support == "degraded"
        assert "queries and keys cannot be seen" in model.check.reason
    else:
        assert model.check.support == "exact", model.check.reason
    agree(written, model)


class Documents(Written):
    """Attention ends where a document does, at token `end`: each prompt has a mask of its own."""

    def __init__(self, end, **choices):
        super().__init__(**choices)
        self.end = end

    def forward(self, ids):
        document, n = (ids == self.end).cumsum(1), ids.shape[1]
        closed = (document[:, :, None] != document[:, None]) | torch.ones(n, n).triu(1).bool()
        for block in self.blocks:
            block.attention.bias = lambda n: torch.zeros(closed.shape).masked_fill(closed, -1e9)[:, None]
        return super().forward(ids)


@pytest.mark.parametrize("attend", ["softmax", "einsum"])
@pytest.mark.parametrize(("end", "checked"), [(29, True), (27, False)])
def test_masks_that_differ_between_the_prompts_of_a_batch_are_each_prompt_s_own(attend, end, checked):
    written = Documents(end, attend=attend).eval()
    model = load(written)
    assert bool((_tokens(model.backbone) == end).any()) == checked  # right also where the self-check meets no end
    ids = torch.randint(27, (3, 13), generator=torch.Generator().manual_seed(1))
    ids[0, 4] = ids[1, 9] = ids[1, 11] = end
    places = torch.cartesian_prod(*map(torch.arange, (3, 13, 13))).T
    seen = {}

    def visit(attention):
        seen[attention.layer] = attention.pattern(), attention.probabilities(*places)

    model.run(ids, visit)
    written.logits(ids)
    for layer, wanted in enumerate(written.patterns):
        pattern, single = seen[layer]
        torch.testing.assert_close(pattern, wanted, atol=1e-5, rtol=0)
        torch.testing.assert_close(single, wanted.permute(0, 2, 3, 1).flatten(0, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("masked", [-1e4, -1e9])
def test_a_mask_of_finite_numbers_closes_what_minus_infinity_closes(masked):
    # Query 12 sees 13 of 16 keys; the three after it hold a finite number, whose probability is 0 all the same.
    written = Written(attend="sdpa").eval()
    bias = torch.zeros(HEADS, CONTEXT, CONTEXT).masked_fill(torch.ones(CONTEXT, CONTEXT).triu(1).bool(), masked)
    for block in written.blocks:
        block.attention.bias = lambda n: bias[:, :n, :n]
    model, seen = load(written), []
    places = torch.tensor([0, 0]), torch.tensor([12, 12]), torch.tensor([12, 13])
    model.run(torch.randint(VOCABULARY, (1, 16)), lambda attention: seen.append(attention.allowed(*places)))
    for open_, keys in seen:
        assert (open_.tolist(), keys.tolist()) == ([1, 0], [13, 13])
    agree(written, model)


class OfTorch(nn.Module):
    """Two layers of `nn.MultiheadAttention`, which has a kernel of its own where no gradient is asked for."""

    def __init__(self, *, batch_first, need_weights):
        super().__init__()
        self.batch_first, self.need_weights = batch_first, need_weights
        self.embed, self.position = nn.Embedding(VOCABULARY, D), nn.Parameter(0.5 * torch.randn(CONTEXT, D))
        self.layers = nn.ModuleList(nn.MultiheadAttention(D, HEADS, batch_first=batch_first) for _ in range(2))
        self.norms, self.unembed = nn.ModuleList(nn.LayerNorm(D) for _ in range(2)), nn.Linear(D, VOCABULARY)
        self.patterns = []

    def forward(self, ids, *, own=False):
        x, n = self.embed(ids) + self.position[: ids.shape[1]], ids.shape[1]
        later = torch.ones(n, n).triu(1).bool()
        self.patterns = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            y = norm(x) if self.batch_first else norm(x).transpose(0, 1)
            told = {"average_attn_weights": False} if own else {}
            y, pattern = layer(y, y, y, attn_mask=later, need_weights=own or self.need_weights, **told)
            self.patterns.append(pattern)
            x = x + (y if self.batch_first else y.transpose(0, 1))
        return self.unembed(x)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_torch_s_own_attention_module_is_right(batch_first, need_weights):
    torch.manual_seed(0)
    module = OfTorch(batch_first=batch_first, need_weights=need_weights).eval()
    model = load(module)
    assert (model.check.support, model.check.heads, model.max_tokens) == ("exact", {0: 4, 1: 4}, CONTEXT)
    ids = torch.randint(VOCABULARY, (3, 13))
    seen = {}
    model.run(ids, lambda attention: seen.update({attention.layer: attention.pattern().clone()}))
    with torch.no_grad():
        module(ids, own=True)
    for layer, pattern in enumerate(module.patterns):
        torch.testing.assert_close(seen[layer], pattern, atol=1e-5, rtol=0)
    for layer, head in [(0, 1), (1, 3)]:

        def without(attention, layer=layer, head=head):
            if attention.layer != layer:
                return None
            z = attention.z.clone()
            z[:, :, head] = 0
            return z

        given = model.backbone.logits(model.run(ids, without))
        other = copy.deepcopy(module)
        w_o = other.get_parameter(f"layers.{layer}.out_proj.weight")  # [out, in], 6 columns for each head
        w_o.data[:, head * 6 : head * 6 + 6] = 0
        with torch.no_grad():
            wanted, plain = other(ids, own=True), module(ids, own=True)
        assert float((wanted - plain).abs().max()) > 1e-3
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["seq_length", "max_seq_len", "max_position_embeddings", "n_positions", "block_size"])
def test_a_config_s_context_is_read_under_every_name_that_it_has(name):
    assert stated_context(SimpleNamespace(**{name: 40})) == 40
    assert stated_context(SimpleNamespace(**{name: None})) is None


@pytest.mark.parametrize("twist", REFUSED)
def test_modules_whose_heads_have_no_part_of_their_own_are_refused_with_the_reason(twist):
    with pytest.raises(UnsupportedModel, match=REFUSED[twist]):
        load(Written(twist=twist).eval())


@pytest.mark.parametrize("seed", range(12))
def test_random_combinations_are_right(seed):
    drawn = random.Random(seed)
    choices = {name: drawn.choice(values) for name, values in CHOICES.items() if name != "twist"}
    written = Written(**choices).eval()
    agree(written, load(written))


class Stacked(nn.Module):
    """All layers in one module, their weights stacked."""

    def __init__(self):
        super().__init__()
        d = D // HEADS
        self.embed, self.unembed = nn.Parameter(torch.randn(VOCABULARY, D)), nn.Parameter(torch.randn(D, VOCABULARY))
        self.w_q, self.w_k, self.w_v = (nn.Parameter(torch.randn(3, D, HEADS, d) * 0.3) for _ in range(3))
        self.w_o = nn.Parameter(torch.randn(3, HEADS, d, D) * 0.3)
        self.patterns = []

    def forward(self, ids, without=None):
        x, n = self.embed[ids], ids.shape[1]
        self.patterns = []
        for layer in range(3):
            y = nn.functional.layer_norm(x, (D,))
            q, k, v = (torch.einsum("btm,mhd->bhtd", y, w[layer]) for w in (self.w_q, self.w_k, self.w_v))
            logits = q @ k.mT * 0.4 + torch.full((n, n), float("-inf")).triu(1)
            self.patterns.append(torch.exp(logits - torch.logsumexp(logits, -1, keepdim=True)).detach())
            w_o = self.w_o[layer].clone()
            if without is not None and without[0] == layer:
                w_o[without[1]] = 0
            x = x + torch.einsum("bhqd,hdm->bqm", logits.softmax(-1) @ v, w_o)
        return x @ self.unembed


def test_layers_of_one_module_with_stacked_weights_are_right():
    torch.manual_seed(0)
    module = Stacked().eval()
    model = load(module)
    assert (model.check.support, model.check.heads) == ("exact", {0: 4, 1: 4, 2: 4})
    ids = torch.randint(VOCABULARY, (3, 13))
    seen = {}
    model.run(ids, lambda attention: seen.update({attention.layer: attention.pattern().clone()}))
    module(ids)
    for layer, pattern in enumerate(module.patterns):
        torch.testing.assert_close(seen[layer], pattern, atol=1e-5, rtol=0)

    def without(attention):
        if attention.layer == 1:
            z = attention.z.clone()
            z[:, :, 2] = 0
            return z
        return None

    given = model.backbone.logits(model.run(ids, without))
    torch.testing.assert_close(given, module(ids, (1, 2)).detach(), atol=1e-5, rtol=1e-5)


class Listed(nn.Module):
    """All layers in one module, their linear maps in a list for each kind."""

    def __init__(self):
        super().__init__()
        self.embed, self.unembed = nn.Embedding(VOCABULARY, D), nn.Linear(D, VOCABULARY)
        self.q, self.k, self.v, self.out = (nn.ModuleList(nn.Linear(D, D) for _ in range(2)) for _ in range(4))

    def forward(self, ids):
        x = self.embed(ids)
        for layer in range(2):
            maps = (self.q[layer], self.k[layer], self.v[layer])
            q, k, v = (one(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in maps)
            z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out[layer](z.transpose(1, 2).flatten(2))
        return self.unembed(x)


@pytest.mark.parametrize("kind", [Stacked, Listed])
def test_layers_of_one_module_are_verified_without_weights_by_head(kind):
    torch.manual_seed(0)
    model = load(kind().eval(), max_tokens=64)
    with pytest.raises(UnsupportedModel, match="one module attends for several layers"):
        layer_weights(model)
    found = hs.verify(model, probe=hs.repeated_tokens(model, n_prompts=2, period=6))
    assert len(found.heads) == sum(model.check.heads.values())
    assert all(one.copying is None for one in found.heads)


class Loud(Listed):
    """The same with a softmax of its own, over logits of some tens."""

    def __init__(self):
        super().__init__()
        self.patterns = []
        with torch.no_grad():
            for one in self.q:
                one.weight *= 60

    def forward(self, ids):
        x, n = self.embed(ids), ids.shape[1]
        self.patterns = []
        for layer in range(2):
            maps = (self.q[layer], self.k[layer], self.v[layer])
            q, k, v = (one(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for one in maps)
            logits = q @ k.mT / D**0.5 + torch.full((n, n), float("-inf"), dtype=x.dtype).triu(1)
            self.patterns.append(torch.exp(logits.float() - torch.logsumexp(logits.float(), -1, keepdim=True)).detach())
            x = x + self.out[layer]((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.unembed(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_softmax_of_rounded_logits_is_read_as_it_is(dtype):
    # Logits past 32 are multiples of 1/4 in bfloat16 and of 1/32 in float16: those of q . k in float32 give other
    # probabilities, by factors of up to exp(1/8).
    torch.manual_seed(0)
    module = Loud().eval().to(dtype)
    model = load(module, max_tokens=64)
    assert model.check.support == ("exact" if dtype == torch.float32 else "degraded"), model.check.reason
    ids = torch.randint(VOCABULARY, (3, 13))
    seen = {}
    model.run(ids, lambda attention: seen.update({attention.layer: attention.pattern().float()}))
    module(ids)
    for layer, pattern in enumerate(module.patterns):
        torch.testing.assert_close(seen[layer], pattern, atol=max(1e-5, 2 * torch.finfo(dtype).eps), rtol=0)
