"""Token tables of modules that keep them as parameters, against the parameters themselves."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.written import CHOICES, CONTEXT, VOCABULARY, Block, D
from headscope.errors import UnsupportedModel
from headscope.evidence.copying import TokenSpace
from headscope.heads import HeadId
from headscope.model.load import load
from headscope.model.weights import vocabulary


class Bare(nn.Module):
    """Two layers of parameters and einsum; its tables are parameters, or modules with the same numbers."""

    def __init__(self, *, look="row", unembed="product", norm="LN", positions=True, twist=None):
        super().__init__()
        torch.manual_seed(0)
        self.look, self.unembed, self.twist = look, unembed, twist
        self.decoy = nn.Parameter(torch.randn(VOCABULARY, D))
        self.w_e = nn.Parameter(torch.randn(D, VOCABULARY) if look == "column" else torch.randn(VOCABULARY, D))
        self.w_u = nn.Parameter(torch.randn(D, VOCABULARY) * 0.3)
        self.b_u = nn.Parameter(torch.randn(VOCABULARY))
        self.inner = nn.Parameter(torch.randn(D, D))
        self.w_p = nn.Parameter(torch.randn(CONTEXT, D)) if positions else None
        choices = {name: values[0] for name, values in CHOICES.items()}
        parameters = {"project": "parameters", "attend": "einsum", "out": "einsum"}
        self.blocks = nn.ModuleList(Block(**choices | parameters) for _ in range(2))
        self.norm = {"LN": nn.LayerNorm(D), "RMS": nn.RMSNorm(D), "none": None}[norm]
        if self.norm is not None:
            nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        if look == "module":
            self.embed = nn.Embedding(VOCABULARY, D, _weight=self.w_e)
        if unembed == "module":
            self.head = nn.Linear(D, VOCABULARY)
            self.head.weight, self.head.bias = nn.Parameter(self.w_u.T.contiguous()), self.b_u

    def enter(self, ids):
        match self.look:
            case "row":
                x = self.w_e[ids]
            case "column":
                x = self.w_e.T[ids]
            case "one hot":
                x = F.one_hot(ids, VOCABULARY).float() @ self.w_e
            case "scaled":
                x = 3.0 * F.embedding(ids, self.w_e)
            case "factored":
                x = self.w_e[ids] @ self.inner
            case _:
                x = self.embed(ids)
        if self.twist == "smear":
            x = x + 0.5 * F.pad(x, (0, 0, 1, 0))[:, :-1]
        if self.w_p is not None:
            x = x + self.w_p[: ids.shape[1]]
        return F.layer_norm(x, (D,)) if self.twist == "normed at the start" else x

    def forward(self, ids):
        x = self.enter(ids)
        for block in self.blocks:
            x = block(x)
        if self.twist == "normed at the end":
            x = F.layer_norm(x, (D,))
        x = x if self.norm is None else self.norm(x)
        match self.unembed:
            case "product":
                logits = x @ self.w_u + self.b_u
            case "tied":
                logits = F.linear(x, self.w_e)
            case _:
                logits = self.head(x)
        return torch.tanh(logits) if self.twist == "capped" else logits


def close(given, wanted):
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("look", ["row", "column", "one hot", "scaled", "module"])
def test_the_parameter_whose_rows_enter_the_stream_is_the_embedding(look, positions):
    model = Bare(look=look, positions=positions)
    wanted = {"column": model.w_e.T, "scaled": 3 * model.w_e}.get(look, model.w_e)
    close(vocabulary(load(model.eval())).embedding, wanted.detach())


def test_a_product_of_parameters_is_read_where_no_position_is_added():
    model = Bare(look="factored", positions=False)
    close(vocabulary(load(model.eval())).embedding, (model.w_e @ model.inner).detach())


@pytest.mark.parametrize("norm", ["LN", "RMS", "none"])
@pytest.mark.parametrize("unembed", ["product", "tied", "module"])
def test_an_unembedding_that_is_a_parameter_is_asked_by_unit_vectors(unembed, norm, monkeypatch):
    monkeypatch.setattr("headscope.model.weights.asked.BATCH", 7)
    model = Bare(unembed=unembed, norm=norm)
    found = vocabulary(load(model.eval()))
    close(found.unembedding, (model.w_e if unembed == "tied" else model.w_u.T).detach())
    if norm == "none":
        assert found.norm is None
    else:
        assert found.norm.centred == (norm == "LN")
        gain = model.norm.weight.detach()
        close(found.norm.gain / found.norm.gain.norm(), gain / gain.norm())


def test_copying_is_that_of_the_same_weights_in_modules():
    bare, plain = (
        TokenSpace(load(Bare(look=look, unembed=unembed).eval())).copying([HeadId(0, 1), HeadId(1, 2)])
        for look, unembed in (("row", "product"), ("module", "module"))
    )
    assert bare.eigenvalue == pytest.approx(plain.eigenvalue, rel=1e-4)
    assert bare.direct.mean == pytest.approx(plain.direct.mean, rel=1e-4)
    assert bare.top1 == plain.top1


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"twist": "capped"}, "no module's output gives its logits by a linear map"),
        ({"twist": "normed at the end", "norm": "none"}, "no module's output gives its logits by a linear map"),
        ({"twist": "normed at the end"}, "neither the residual stream nor a normalisation of it"),
        ({"twist": "normed at the start"}, "not a row of one table and one for each position"),
        ({"twist": "smear"}, "not a row of one table and one for each position"),
        ({"twist": "smear", "look": "module"}, "normalised or otherwise changed before the first layer"),
        ({"look": "factored"}, "no parameter is its embedding, and what enters its first layer holds the position"),
    ],
    ids=str,
)
def test_what_no_table_describes_is_refused(choices, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        vocabulary(load(Bare(**choices).eval()))


def test_layers_without_a_number_in_their_name_have_a_final_norm_too():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            choices = {name: values[0] for name, values in CHOICES.items()}
            self.embed, self.position = nn.Embedding(VOCABULARY, D), nn.Parameter(torch.randn(CONTEXT, D))
            self.first, self.second = Block(**choices), Block(**choices)
            self.norm, self.unembed = nn.LayerNorm(D), nn.Linear(D, VOCABULARY)

        def forward(self, ids):
            x = self.embed(ids) + self.position[: ids.shape[1]]
            return self.unembed(self.norm(self.second(self.first(x))))

    torch.manual_seed(0)
    module = Named().eval()
    nn.init.uniform_(module.norm.weight, 0.5, 1.5)
    words = vocabulary(load(module))
    assert words.norm is not None
    torch.testing.assert_close(words.norm.gain, module.norm.weight.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(words.unembedding, module.unembed.weight.detach(), atol=1e-4, rtol=1e-4)
