"""What heads write, held against the models' own weights, read by name."""

from __future__ import annotations

import pytest
import torch
from pytest import approx

import headscope as hs
from benchmarks.tiny import tiny_causal_lm
from headscope.explore.writing import TOP, Writing, normed
from headscope.heads import HeadId
from headscope.model.weights import Norm

TOKENS = torch.tensor([3, 17, 5, 40, 17, 9, 28]).numpy()


def leave(attention):
    return None


def stream_and_z(hf, projections, last):
    """The stream after the last layer, and what each output projection reads, at the last token."""
    kept = {}
    handles = [
        module.register_forward_pre_hook(lambda m, a, name=name: kept.update({name: a[0][0, -1]}))
        for name, module in enumerate(projections)
    ]
    handles.append(last.register_forward_pre_hook(lambda m, a: kept.update(stream=a[0][0, -1])))
    with torch.no_grad():
        logits = hf(torch.from_numpy(TOKENS)[None]).logits[0, -1]
    for handle in handles:
        handle.remove()
    return kept.pop("stream"), kept, logits


def expect(writes, wanted):
    """`wanted`: [head, vocabulary] for each layer, centred."""
    assert len(writes.heads) == sum(map(len, wanted.values()))
    for one in writes.heads:
        row = wanted[one.head.layer][one.head.head]
        best = row.topk(TOP)
        assert [raised.id for raised in one.raises] == best.indices.tolist()
        assert [raised.logit for raised in one.raises] == approx(best.values.tolist(), rel=2e-3, abs=1e-5)
    most = [one.raises[0].logit for one in writes.heads]
    assert most == sorted(most, reverse=True)
    assert (writes.note, writes.reason) == (None, None)


def test_demo_by_its_own_weights(reader, text):
    tokens = reader.tokens(text)
    hf = reader.model.hf
    at, kept, stream = 30, {}, []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda m, a, n=n: kept.update({n: a[0][0, at]}))
        for n, layer in enumerate(hf.model.layers)
    ]
    handles.append(hf.model.norm.register_forward_pre_hook(lambda m, a: stream.append(a[0][0, at])))
    with torch.no_grad():
        hf(torch.from_numpy(tokens)[None])
        size = (stream[0].square().mean() + hf.config.rms_norm_eps).sqrt()
        wanted = {}
        for n, layer in enumerate(hf.model.layers):
            z = kept[n].unflatten(-1, (6, 32))
            added = torch.einsum("hd,mhd->hm", z, layer.self_attn.o_proj.weight.unflatten(1, (6, 32)))
            logits = (added * hf.model.norm.weight / size) @ hf.lm_head.weight.T
            wanted[n] = logits - logits.mean(1, keepdim=True)
    for handle in handles:
        handle.remove()
    expect(reader.writes(text, at), wanted)


def test_gpt2_with_its_centred_norm():
    model = hs.load(tiny_causal_lm("gpt2"))
    hf = model.hf
    blocks = hf.transformer.h
    stream, z, _ = stream_and_z(hf, [one.attn.c_proj for one in blocks], hf.transformer.ln_f)
    n_heads, norm = model.n_heads, hf.transformer.ln_f
    wanted = {}
    with torch.no_grad():
        for n, block in enumerate(blocks):
            added = torch.einsum(
                "hd,hdm->hm", z[n].unflatten(-1, (n_heads, -1)), block.attn.c_proj.weight.unflatten(0, (n_heads, -1))
            )
            centred = added - added.mean(1, keepdim=True)
            logits = (centred * norm.weight / (stream.var(unbiased=False) + norm.eps).sqrt()) @ hf.lm_head.weight.T
            wanted[n] = logits - logits.mean(1, keepdim=True)
    expect(Writing(model).at(TOKENS, len(TOKENS) - 1, leave), wanted)


def test_a_factor_on_the_logits_is_applied():
    # Cohere multiplies its logits; its attention and MLP stand side by side.
    hf = tiny_causal_lm("cohere")
    hf.logit_scale = 0.25
    model = hs.load(hf)
    stream, z, _ = stream_and_z(hf, [one.self_attn.o_proj for one in hf.model.layers], hf.model.norm)
    wanted = {}
    with torch.no_grad():
        for n, layer in enumerate(hf.model.layers):
            heads = z[n].unflatten(-1, (model.n_heads, -1))
            added = torch.einsum("hd,mhd->hm", heads, layer.self_attn.o_proj.weight.unflatten(1, (model.n_heads, -1)))
            centred = added - added.mean(1, keepdim=True)
            size = (stream.var(unbiased=False) + hf.config.layer_norm_eps).sqrt()
            logits = (centred * hf.model.norm.weight / size) @ hf.lm_head.weight.T * 0.25
            wanted[n] = logits - logits.mean(1, keepdim=True)
    expect(Writing(model).at(TOKENS, len(TOKENS) - 1, leave), wanted)


def test_a_soft_cap_is_said():
    # Gemma 2 also has a norm behind its attention: the shares of the heads add up to what the norm gives.
    model = hs.load(tiny_causal_lm("gemma2"))
    writes = Writing(model).at(TOKENS, len(TOKENS) - 1, leave)
    assert "soft-cap" in writes.note
    assert len(writes.heads) == model.n_layers * model.n_heads


def test_shares_of_a_norm_add_up():
    torch.manual_seed(0)
    norm = Norm(gain=torch.rand(8) + 0.5, bias=torch.zeros(8), centred=True)
    parts = torch.randn(5, 8)
    wanted = torch.nn.functional.layer_norm(parts.sum(0), (8,), norm.gain, eps=0)
    assert normed(norm, parts, parts.sum(0)).sum(0).tolist() == approx(wanted.tolist(), abs=1e-5)


def test_a_head_that_is_off_writes_nothing(reader, text):
    found = {one.head: one for one in reader.writes(text, 30, off=["L1H0"], method="zero").heads}
    assert [one.logit for one in found[HeadId(1, 0)].raises] == [0.0] * TOP
    assert found[HeadId(1, 1)].raises[0].logit > 0.1


def test_heads_that_cannot_be_told_apart_have_a_reason(reader, text, monkeypatch):
    def refuse(model):
        raise hs.errors.UnsupportedModel("its weights cannot be assigned to heads")

    monkeypatch.setattr("headscope.explore.reading.Writing", refuse)
    alone = type(reader)(reader.model)
    writes = alone.writes(text, 3)
    assert (writes.heads, writes.reason) == ((), "its weights cannot be assigned to heads")


@pytest.mark.parametrize("hook", ["forward", "raise"])
def test_the_model_is_left_as_it_was(reader, text, hook, monkeypatch):
    if hook == "raise":
        monkeypatch.setattr("headscope.model.taps.forward", lambda *a, **k: (_ for _ in ()).throw(KeyError("x")))
        with pytest.raises(KeyError):
            reader.writes(text, 3)
    else:
        reader.writes(text, 3)
    assert not any(module._forward_hooks for module in reader.model.hf.modules())
