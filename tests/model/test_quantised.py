"""Weights that a library keeps packed, and layers that round what they are given while they run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.packed import Packed, quantised
from benchmarks.tiny import tiny_causal_lm
from headscope.errors import UnsupportedModel
from headscope.model.load import load
from headscope.model.weights import layer_weights


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32), (4, 16)])
@pytest.mark.parametrize("unpacks", [True, False])
def test_packed_weights_are_read_by_unpacking_or_by_asking_the_layer(bits, group, unpacks, monkeypatch):
    hf = quantised(tiny_causal_lm("llama"), bits=bits, group=group)
    attention = hf.model.layers[0].self_attn
    own = {name: getattr(attention, f"{name}_proj").weight.dequantize() for name in "qkvo"}
    with pytest.raises(NotImplementedError, match="aten"):
        attention.q_proj.weight.T.contiguous()
    if not unpacks:
        monkeypatch.delattr(Packed, "dequantize")  # Tensor's own is not implemented for it
    found = layer_weights(load(hf))[0]
    for name, n_heads in {"q": 4, "k": 2, "v": 2}.items():
        wanted = own[name].unflatten(0, (n_heads, -1)).mT  # [head, in, d_head]
        torch.testing.assert_close(getattr(found, f"w_{name}").float(), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.w_o.float(), own["o"].mT.unflatten(0, (4, -1)), atol=1e-5, rtol=1e-5)


class Touchy(nn.Linear):
    """As a layer that rounds its input does: a difference of one rounding becomes a large one."""

    def forward(self, x):
        return super().forward(x + 0.02 * torch.sin(3e4 * x))


class OverTheBatch(nn.Linear):
    """Rounds its input to 15 steps of the largest number in the batch."""

    def forward(self, x):
        step = x.abs().amax((0, 1)) / 7
        return F.linear((x / step).round() * step, self.weight)


class Rounded(nn.Linear):
    """Rounds its input to 15 steps of the largest number in each row."""

    def forward(self, x):
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 7
        return F.linear((x / step).round() * step, self.weight)


def replaced(kind, names):
    hf = tiny_causal_lm("llama")
    for name, part in list(hf.named_modules()):
        if name.endswith(names):
            part.__class__ = kind
    return hf


def test_where_rounding_grows_the_reason_says_so_and_how_far_it_moves_the_model_s_own_output(monkeypatch):
    monkeypatch.setattr(Touchy, "__module__", "torchao.quantization")
    check = load(replaced(Touchy, ("q_proj", "k_proj", "v_proj"))).check
    assert check.support == "degraded"
    assert "its output through our attention differs from its own by" in check.reason
    assert "rounding its embedding otherwise moves its own by" in check.reason
    assert "own" not in check.kernels


def test_where_the_layer_is_of_no_known_library_its_own_code_is_read_with_proof():
    check = load(replaced(Touchy, ("q_proj", "k_proj", "v_proj"))).check
    assert (check.support, check.route.path, check.max_abs_diff) == ("exact", "module", 0.0)


def test_a_model_whose_prompts_depend_on_their_batch_is_refused_with_that_reason():
    with pytest.raises(UnsupportedModel, match=r"for one prompt depends on the other prompts of the batch"):
        load(replaced(OverTheBatch, ("q_proj", "k_proj", "v_proj")))


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("o_proj",), "a Rounded does not compute what its weight says"),
        (("q_proj",), "a Rounded does not compute what its weight says"),
    ],
)
def test_weights_of_a_layer_that_rounds_its_input_are_refused(names, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        layer_weights(load(replaced(Rounded, names)))
