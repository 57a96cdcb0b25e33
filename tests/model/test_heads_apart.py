"""Heads that are modules of their own, computed one after another and concatenated: one layer's heads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import headscope as hs
from benchmarks.sources import _apart
from benchmarks.written import HEADS, VOCABULARY, D, Written, agree
from headscope.errors import UnsupportedModel
from headscope.model.attention import Attention, Scores
from headscope.model.kernels import AttentionSpec, additive, attend
from headscope.model.load import load
from headscope.model.product import joined
from headscope.model.weights import layer_weights

D_HEAD = D // HEADS


class Head(nn.Module):
    """One head, with the rows of the projections that are its own."""

    def __init__(self, attention, head):
        super().__init__()
        rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
        self.query, self.key, self.value = (nn.Linear(D, D_HEAD) for _ in range(3))
        for own, whole in zip((self.query, self.key, self.value), (attention.q, attention.k, attention.v), strict=True):
            own.weight.data, own.bias.data = whole.weight.data[rows].clone(), whole.bias.data[rows].clone()

    def forward(self, x):
        logits = self.query(x) @ self.key(x).transpose(-2, -1) * D_HEAD**-0.5
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        return torch.softmax(logits.masked_fill(later, float("-inf")), dim=-1) @ self.value(x)


class Apart(nn.Module):
    """Attention of such heads."""

    def __init__(self, attention, how="cat"):
        super().__init__()
        self.how, self.o = how, attention.o
        self.heads = nn.ModuleList(Head(attention, head) for head in range(HEADS))

    def forward(self, x):
        match self.how:
            case "cat":
                return self.o(torch.cat([head(x) for head in self.heads], dim=-1))
            case "stack":
                return self.o(torch.stack([head(x) for head in self.heads], dim=-2).flatten(-2))
            case "scaled":  # each is used before the next is there
                return self.o(torch.cat([head(x) * 0.5 for head in self.heads], dim=-1))


def both(how="cat"):
    torch.manual_seed(0)
    written = Written().eval()
    apart = Written().eval()
    apart.load_state_dict(written.state_dict())
    for block in apart.blocks:
        block.attention = Apart(block.attention, how)
    ids = torch.randint(VOCABULARY, (3, 13))
    torch.testing.assert_close(apart(ids), written(ids), atol=1e-4, rtol=1e-4)
    return written, apart


@pytest.mark.parametrize("how", ["cat", "stack"])
def test_their_patterns_and_ablations_are_those_of_the_same_weights_together(how):
    written, apart = both(how)
    model = load(apart)
    assert (model.check.support, model.check.heads) == ("exact", {0: HEADS, 1: HEADS})
    assert model.route.layers == {"blocks.0.attention": 0, "blocks.1.attention": 1}
    agree(written, model)


def test_every_use_gives_the_numbers_of_the_same_weights_together():
    models = [load(one) for one in both()]
    probe = hs.repeated_tokens(models[0], n_prompts=6, period=5)
    assert _apart([hs.verify(one, ["L0H0", "L1H1"], probe=probe) for one in models], ("heads",)) < 1e-4
    assert _apart([hs.trace_circuit(one, ["L1H0"], probe=probe) for one in models], ("receivers", "edges")) < 1e-5
    first, second = (np.asarray(hs.composition(one).scores["k"]) for one in models)
    np.testing.assert_allclose(second, first, atol=1e-6)
    wanted, given = (layer_weights(one) for one in models)
    for layer in (0, 1):
        for name in ("w_q", "w_k", "w_v", "w_o"):
            torch.testing.assert_close(getattr(given[layer], name), getattr(wanted[layer], name), atol=1e-5, rtol=1e-5)


def test_a_head_that_is_used_before_all_are_there_is_refused():
    _, apart = both()
    for block in apart.blocks:
        block.attention.how = "scaled"
    with pytest.raises(UnsupportedModel, match="one is used before all are there"):
        load(apart)


def test_heads_of_unequal_width_are_refused():
    _, apart = both()
    wide = apart.blocks[1].attention
    wide.heads[0].value, wide.o = nn.Linear(D, D_HEAD + 2), nn.Linear(D + 2, D)
    with pytest.raises(UnsupportedModel, match=r"the heads of layer 1 are \[6, 8\] numbers wide"):
        load(apart)


def test_masks_of_two_types_are_not_added_to_each_other():
    # Side by side as numbers, a boolean mask would be 0 and 1 to add to the logits: nothing closed.
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    parts = []
    for bias in (allowed, additive(allowed, torch.float32)):
        q, k, v = (torch.randn(2, 1, 5, 4) for _ in range(3))
        rule = AttentionSpec(scale=0.5, causal=False, bias=bias)
        z, lse, kernel = attend(q, k, v, rule)
        scores = Scores(q=q, k=k, v=v, rule=rule, lse=lse)
        parts.append(Attention(layer=0, call=0, z=z.transpose(1, 2), kernel=kernel, scores=scores))
    whole = joined(parts).pattern()
    torch.testing.assert_close(whole, torch.cat([one.pattern() for one in parts], 1))
    assert whole.triu(1).abs().max() == 0
