"""Transformers models with attention of someone else's in them: read with proof, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.tiny import tiny_causal_lm
from headscope.errors import UnsupportedModel
from headscope.heads import Unread
from headscope.model.load import load

IDS = torch.randint(30, (3, 13), generator=torch.Generator().manual_seed(1))


def causal(score, batch, head, query, key):
    return torch.where(query >= key, score, -float("inf"))


class Own(nn.Module):
    """Attention of 4 heads of 32, in place of Llama's."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.q, self.k, self.v, self.o = (nn.Linear(*size) for size in [(64, 128)] * 3 + [(128, 64)])
        self.without: int | None = None
        self.pattern = None

    def forward(self, hidden_states, **_):
        x = hidden_states
        q, k, v = (part(x).view(*x.shape[:2], 4, 32).transpose(1, 2) for part in (self.q, self.k, self.v))
        n = x.shape[1]
        logits = q @ k.mT * 32**-0.5 + torch.full((n, n), float("-inf")).triu(1)
        self.pattern = torch.exp(logits - torch.logsumexp(logits, -1, keepdim=True)).detach()
        match self.how:
            case "one by one":
                z = torch.stack([logits[:, head].softmax(-1) @ v[:, head] for head in range(4)], dim=1)
            case "sink":
                z = torch.cat([logits, logits[..., :1] * 0], -1).softmax(-1)[..., :-1] @ v
            case "chunks":
                parts = [(logits[:, :, at : at + 5, : at + 5], v[:, :, : at + 5]) for at in range(0, n, 5)]
                z = torch.cat([part.softmax(-1) @ values for part, values in parts], dim=2)
            case "without a softmax":
                z = (q @ k.mT / 32).tril() @ v
            case "flex":
                z = flex_attention(q, k, v, score_mod=causal)
            case _:
                z = logits.softmax(-1) @ v
        if self.without is not None:
            z = z.clone()
            z[:, self.without] = 0
        z = z.transpose(1, 2)
        if self.how == "(d h)":
            z = z.transpose(2, 3)
        return self.o(z.flatten(2)), None


def swapped(how, layers):
    hf = tiny_causal_lm("llama")
    torch.manual_seed(0)
    for layer in layers:
        hf.model.layers[layer].self_attn = Own(how)
    return hf.eval()


@pytest.mark.parametrize("how", ["plain", "(d h)", "one by one"])
@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_attention_that_was_swapped_is_read_as_it_computes(how, layers):
    hf = swapped(how, layers)
    model = load(hf)
    assert (model.route.path, model.check.heads) == ("module", {0: 4, 1: 4})
    seen = {}
    model.run(IDS, lambda attention: seen.update({attention.layer: attention.pattern().clone()}))
    with torch.no_grad():
        hf(input_ids=IDS)
    torch.testing.assert_close(seen[1], hf.model.layers[1].self_attn.pattern, atol=1e-5, rtol=0)
    for head in range(4):

        def without(attention, head=head):
            if attention.layer != 1:
                return None
            z = attention.z.clone()
            z[:, :, head] = 0
            return z

        given = model.run(IDS, without).logits
        hf.model.layers[1].self_attn.without = head
        with torch.no_grad():
            wanted = hf(input_ids=IDS).logits
        hf.model.layers[1].self_attn.without = None
        torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("how", ["sink", "chunks"])
@pytest.mark.parametrize("layers", [(1,), (0, 1)])
def test_a_swapped_layer_that_would_go_unseen_is_refused(how, layers):
    with pytest.raises(UnsupportedModel, match=r"a softmax of shape .* so part of its attention would go unseen"):
        load(swapped(how, layers))


@pytest.mark.parametrize(("layers", "heads"), [((0,), {1: 4}), ((1,), {0: 4})])
def test_a_swapped_layer_that_has_no_softmax_is_named(layers, heads):
    model = load(swapped("without a softmax", layers))
    assert (model.check.support, model.check.heads) == ("exact", heads)
    assert model.check.unread == Unread(layers=layers, outside=())


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_swapped_layer_of_flex_attention_is_refused_by_name():
    with pytest.raises(UnsupportedModel, match="attends by flex_attention, which is not read"):
        load(swapped("flex", (1,)))
