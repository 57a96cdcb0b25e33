"""Weights found by tracing, against slices cut by hand from each family's own named tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, OPTConfig, OPTForCausalLM

from benchmarks.tiny import tiny_causal_lm
from benchmarks.written import Written
from headscope.errors import UnsupportedModel
from headscope.model.load import load
from headscope.model.weights import layer_weights, vocabulary
from headscope.planted.handbuilt import handbuilt
from tests.running import forward

HEADS, D_MODEL = 4, 64


def rows(weight, n_heads=HEADS):
    """[head d_model d] of heads that lie one after another in a Linear's weight [out, in]."""
    return weight.view(n_heads, -1, weight.shape[1]).transpose(1, 2)


def columns(weight, n_heads=HEADS):
    """[head d_v d_model] of heads that lie one after another in the input of a Linear's weight [out, in]."""
    return weight.T.reshape(n_heads, -1, weight.shape[0])


def close(given, wanted):
    torch.testing.assert_close(given, wanted, atol=1e-6, rtol=1e-5)


def close_up_to_a_factor(given, wanted):
    close(given / given.norm(), wanted / wanted.norm())


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("layer", [0, 1])
def test_gpt2_conv1d_stores_q_k_v_side_by_side(layer):
    model = tiny_causal_lm("gpt2")
    found = layer_weights(load(model))[layer]
    attn = model.transformer.h[layer].attn
    # c_attn.weight is [d_model, 3 * 64]: q, k, v, each of 4 heads of 16
    for given, bias, start in ((found.w_q, found.b_q, 0), (found.w_k, found.b_k, 64), (found.w_v, found.b_v, 128)):
        assert given.shape == (HEADS, D_MODEL, 16)
        for head in range(HEADS):
            at = slice(start + 16 * head, start + 16 * (head + 1))
            close(given[head], attn.c_attn.weight[:, at])
            close(bias[head], attn.c_attn.bias[at])
    close(found.w_o, attn.c_proj.weight.view(HEADS, 16, D_MODEL))
    close(found.b_o, attn.c_proj.bias)
    assert found.scale == pytest.approx(1 / math.sqrt(16))
    assert found.norm.centred
    close_up_to_a_factor(found.norm.gain, model.transformer.h[layer].ln_1.weight)
    close(found.norm.bias, model.transformer.h[layer].ln_1.bias)
    assert (found.qk_norm, found.rotary, found.out_norm) == (False, False, None)


def test_gpt_neox_interleaves_q_k_v_within_each_head():
    model = tiny_causal_lm("gpt_neox")
    found = layer_weights(load(model))[1]
    own = model.gpt_neox.layers[1].attention
    fused = own.query_key_value.weight.view(HEADS, 3, 16, D_MODEL)
    biases = own.query_key_value.bias.view(HEADS, 3, 16)
    for index, name in enumerate("qkv"):
        close(getattr(found, f"w_{name}"), fused[:, index].transpose(1, 2))
        close(getattr(found, f"b_{name}"), biases[:, index])
    close(found.w_o, columns(own.dense.weight))
    assert found.rotary


def test_llama_shares_two_kv_heads():
    model = tiny_causal_lm("llama")
    found = layer_weights(load(model))[0]
    own = model.model.layers[0].self_attn
    close(found.w_q, rows(own.q_proj.weight))
    close(found.w_k, rows(own.k_proj.weight, 2))
    close(found.w_v, rows(own.v_proj.weight, 2))
    close(found.w_o, columns(own.o_proj.weight))
    assert [found.kv_head(head) for head in range(HEADS)] == [0, 0, 1, 1]
    assert max(float(bias.abs().max()) for bias in (found.b_q, found.b_k, found.b_v, found.b_o)) == 0
    assert not found.norm.centred
    close_up_to_a_factor(found.norm.gain, model.model.layers[0].input_layernorm.weight)


def test_phi3_fuses_heads_of_unequal_number():
    model = tiny_causal_lm("phi3")
    found = layer_weights(load(model))[0]
    fused = model.model.layers[0].self_attn.qkv_proj.weight
    d_head = found.w_q.shape[2]
    q, k, v = fused.split([HEADS * d_head, 2 * d_head, 2 * d_head])
    close(found.w_q, rows(q))
    close(found.w_k, rows(k, 2))
    close(found.w_v, rows(v, 2))


def test_falcon_s_own_attention_call_and_one_shared_kv_head():
    # fused rows: 4 query heads, then one key head and one value head for all
    model = tiny_causal_lm("falcon")
    found = layer_weights(load(model))[0]
    fused = rows(model.transformer.h[0].self_attention.query_key_value.weight, HEADS + 2)
    close(found.w_q, fused[:HEADS])
    for head in range(HEADS):
        close(found.w_k[found.kv_head(head)], fused[HEADS])
        close(found.w_v[found.kv_head(head)], fused[HEADS + 1])


def test_opt_scales_q_before_the_product():
    # q = (x W + b) / sqrt(16), and the product is not scaled again
    model = tiny_causal_lm("opt")
    found = layer_weights(load(model))[0]
    own = model.model.decoder.layers[0].self_attn
    assert found.scale == 1
    close(found.w_q, rows(own.q_proj.weight) / 4)
    close(found.b_q, own.q_proj.bias.view(HEADS, 16) / 4)
    close(found.w_k, rows(own.k_proj.weight))
    close(found.b_o, own.out_proj.bias)


def test_qwen3_s_norm_of_q_and_k_puts_its_gain_inside():
    model = tiny_causal_lm("qwen3")
    found = layer_weights(load(model))[0]
    own = model.model.layers[0].self_attn
    assert found.qk_norm
    close(found.w_q, rows(own.q_proj.weight) * own.q_norm.weight)
    close(found.w_k, rows(own.k_proj.weight, 2) * own.k_norm.weight)
    close(found.w_v, rows(own.v_proj.weight, 2))


def test_olmo2_norms_q_over_all_heads_and_its_output_but_not_its_input():
    model = tiny_causal_lm("olmo2")
    found = layer_weights(load(model))[1]
    layer = model.model.layers[1]
    own = layer.self_attn
    close(found.w_q, rows(own.q_proj.weight) * own.q_norm.weight.view(HEADS, 1, -1))
    assert found.norm is None
    close_up_to_a_factor(found.out_norm.gain, layer.post_attention_layernorm.weight)


def test_persimmon_s_layer_norm_of_q_is_centred_over_each_head():
    model = tiny_causal_lm("persimmon")
    found = layer_weights(load(model))[0]
    own = model.model.layers[0].self_attn
    q = own.query_key_value.weight.view(HEADS, 3, 16, D_MODEL)[:, 0].transpose(1, 2)
    assert found.qk_norm
    close(found.w_q, (q - q.mean(-1, keepdim=True)) * own.q_layernorm.weight)


def test_gemma2_s_gain_is_one_plus_its_weight():
    model = tiny_causal_lm("gemma2")
    found = layer_weights(load(model))[0]
    layer = model.model.layers[0]
    close_up_to_a_factor(found.norm.gain, 1 + layer.input_layernorm.weight)
    close_up_to_a_factor(found.out_norm.gain, 1 + layer.post_attention_layernorm.weight)
    close(vocabulary(load(model)).embedding, model.model.embed_tokens.weight * math.sqrt(D_MODEL))


def test_layers_without_attention_are_absent():
    model = load(tiny_causal_lm("jamba"))
    assert set(layer_weights(model)) == set(model.check.heads) == {1}
    assert model.n_layers == 2


@pytest.mark.parametrize(("family", "path"), [("gpt2", "attn.c_proj"), ("llama", "self_attn.o_proj")])
def test_one_head_alone_writes_its_mix_times_w_o(family, path, tokens):
    # All heads of layer 1 but one at zero: the output projection gives pattern @ (x @ w_v) @ w_o + b_o.
    model = load(tiny_causal_lm(family))
    found = layer_weights(model)[1]
    projection = model.hf.get_submodule(("transformer.h.1." if family == "gpt2" else "model.layers.1.") + path)
    for head in range(HEADS):
        seen = {}

        def alone(attention, head=head, seen=seen):
            if attention.layer == 0:
                return None
            v = attention.scores.v[:, found.kv_head(head)]
            seen["mix"] = attention.pattern()[:, head] @ v
            z = torch.zeros_like(attention.z)
            z[:, :, head] = attention.z[:, :, head]
            return z

        handle = projection.register_forward_hook(lambda *call, seen=seen: seen.update(out=call[2]))
        forward(model.hf, model.check.route, tokens, alone)
        handle.remove()
        torch.testing.assert_close(seen["out"], seen["mix"] @ found.w_o[head] + found.b_o, atol=1e-5, rtol=1e-5)


def test_the_circuit_built_by_hand():
    lab = handbuilt(decoys=["attends_only", "anti_induction"])
    found = layer_weights(load(lab.model))
    read = {}
    for role in ("induction", "anti_induction", "attends_only", "previous_token"):
        (head,) = lab.heads(role)
        layer = found[head.layer]
        read[role] = layer.w_v[head.head] @ layer.w_o[head.head]
    # It copies token to token, 12 times as strong: an eigenvalue for each of the token code's directions.
    assert read["attends_only"].abs().max() == 0
    assert read["induction"].trace() > 0 > read["anti_induction"].trace()
    assert (read["induction"].trace() / read["anti_induction"].trace()).item() == pytest.approx(12 / -3, rel=1e-4)
    assert read["previous_token"].trace().abs() < 1e-3 * read["induction"].trace()
    # LayerNorm's epsilon is 2**30 and its gain 2**15: it centres, and its gain is the same for all.
    assert layer.norm.centred
    close_up_to_a_factor(layer.norm.gain, torch.ones_like(layer.norm.gain))
    # The keys of the induction head read what the previous-token head writes.
    (receiver,) = lab.heads("induction")
    k_circuit = found[receiver.layer].w_q[receiver.head] @ found[receiver.layer].w_k[receiver.head].T
    share = (read["previous_token"] @ k_circuit.T).norm() / (read["previous_token"].norm() * k_circuit.norm())
    assert share > 2 / math.sqrt(len(layer.norm.gain))


REFUSED = {
    "deepseek_v3": "reads 32 numbers, not the 64 that are written (latent attention",
    "qwen3_next": "no linear layer reads its heads' results as they are (gated",
    "bitnet": "gated, normalised or rounded before the output projection",
    "gemma4_text": "values are normalised or gated after their projection",
    "inkling_text": "keys mix several positions",
    "diffllama": "made before an earlier attention",
    "mpt": "hides queries, keys and values",
}


@pytest.mark.parametrize("family", REFUSED)
def test_refused_with_its_reason_and_left_as_it_was(family):
    hf = tiny_causal_lm(family)
    model = load(hf)
    before, config = {name: weight.clone() for name, weight in hf.state_dict().items()}, hf.config._attn_implementation
    with pytest.raises(UnsupportedModel) as refusal:
        layer_weights(model)
    assert REFUSED[family] in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert hooks(hf) == 0
    assert hf.config._attn_implementation == config
    assert all(torch.equal(weight, before[name]) for name, weight in hf.state_dict().items())


class Adapted(nn.Linear):
    """Computes more than its weight says."""

    def forward(self, x):
        return super().forward(x) + 0.1 * x.sum(-1, keepdim=True)


class Bent(nn.Linear):
    """Computes what no matrix does."""

    def forward(self, x):
        return super().forward(x) + 0.1 * x.abs().sum(-1, keepdim=True)


def test_the_weights_of_a_projection_with_an_adapter_are_the_effective_ones():
    hf = tiny_causal_lm("llama")
    projection = hf.model.layers[1].self_attn.v_proj
    projection.__class__ = Adapted
    found = layer_weights(load(hf))[1].w_v  # [kv_head d_model d_v]
    # Each output also gets 0.1 times every input: 0.1 in every place of the matrix.
    torch.testing.assert_close(found.transpose(0, 1).flatten(1), projection.weight.T.detach() + 0.1)


def test_a_projection_that_no_matrix_describes_is_refused():
    hf = tiny_causal_lm("llama")
    hf.model.layers[1].self_attn.v_proj.__class__ = Bent
    with pytest.raises(UnsupportedModel, match=r"layer 1 of .*: a Bent does not compute what its weight says"):
        layer_weights(load(hf))


def test_the_model_is_left_as_it_was_and_edits_show():
    hf = tiny_causal_lm("qwen3").train()
    model = load(hf)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        logits = hf(tokens).logits
    first = layer_weights(model)
    with torch.no_grad():
        assert torch.equal(hf(tokens).logits, logits)
    assert hf.training
    assert hooks(hf) == 0
    first[0].w_v.zero_()  # copies
    with torch.no_grad():
        assert torch.equal(hf(tokens).logits, logits)
        hf.model.layers[0].self_attn.v_proj.weight.mul_(2)
    second = layer_weights(model)
    close(second[0].w_v, rows(hf.model.layers[0].self_attn.v_proj.weight, 2))
    close(second[0].w_q, first[0].w_q)
    assert not second[0].w_q.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_stored_numbers_in_float32(dtype):
    hf = tiny_causal_lm("llama").to(dtype)
    found = layer_weights(load(hf))[0]
    assert found.w_q.dtype == torch.float32
    assert torch.equal(found.w_q, rows(hf.model.layers[0].self_attn.q_proj.weight).float())
    assert torch.equal(found.w_o, columns(hf.model.layers[0].self_attn.o_proj.weight).float())


def test_vocabulary_of_gpt2_and_llama():
    gpt2 = tiny_causal_lm("gpt2")
    found = vocabulary(load(gpt2))
    close(found.embedding, gpt2.transformer.wte.weight)
    close(found.unembedding, gpt2.lm_head.weight)
    assert found.norm.centred
    close_up_to_a_factor(found.norm.gain, gpt2.transformer.ln_f.weight)
    close(found.norm.bias, gpt2.transformer.ln_f.bias)
    llama = tiny_causal_lm("llama")
    found = vocabulary(load(llama))
    close(found.unembedding, llama.lm_head.weight)
    assert not found.norm.centred
    assert hooks(llama) == 0


def test_vocabulary_refuses_what_is_no_map_of_the_stream():
    with pytest.raises(UnsupportedModel, match="has no language-model head"):
        vocabulary(load(GPT2Model(GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2)).eval()))
    projected = OPTConfig(
        vocab_size=40,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        do_layer_norm_before=False,
    )
    with pytest.raises(UnsupportedModel, match="its embedding, stream and unembedding are 16, 32 and 16 wide"):
        vocabulary(load(OPTForCausalLM(projected).eval()))
    with pytest.raises(UnsupportedModel, match="embedding is normalised or otherwise changed before the first layer"):
        vocabulary(load(tiny_causal_lm("modernbert-decoder")))


# Projections that are parameters, not linear layers


@pytest.mark.parametrize(
    "choices",
    [
        {"out": "F.linear"},
        {"out": "matmul", "n_kv": 2, "attend": "sdpa"},
        {"out": "einsum", "positions": "rotary"},
        {"out": "matmul", "order": "d h"},
        {"out": "linear", "block": "parallel"},
    ],
    ids=str,
)
def test_projections_that_are_parameters_are_asked_by_unit_vectors(choices):
    torch.manual_seed(0)
    written = Written(project="parameters", **choices).eval()
    assert layer_weights(load(Written().eval()))[0].w_q.shape == (4, 24, 6)
    for layer, found in layer_weights(load(written)).items():
        own = written.blocks[layer].attention
        w_o = own.o.weight.T if choices["out"] == "linear" else own.w_o
        by_head = w_o.view(6, 4, 24).transpose(0, 1) if choices.get("order") == "d h" else w_o.view(4, 6, 24)
        close(found.w_q, own.w_q)
        close(found.w_o, by_head)
        for given, wanted in ((found.w_k, own.w_k), (found.w_v, own.w_v)):
            # Where key-value heads are repeated before the product, there is one for each query head.
            close(given, wanted.repeat_interleave(len(given) // len(wanted), dim=0))
        assert found.rotary == (choices.get("positions") == "rotary")
        assert not any(float(bias.abs().max()) > 1e-6 for bias in (found.b_q, found.b_k, found.b_v))
        close_up_to_a_factor(found.norm.gain, written.blocks[layer].norm_1.weight)


def test_unit_vectors_in_several_batches_give_the_same_weights(monkeypatch):
    # 24 unit vectors and zero: one batch of 25, or four of 7, 7, 7 and 4.
    torch.manual_seed(0)
    model = load(Written(project="parameters", out="matmul").eval())
    whole = layer_weights(model)
    monkeypatch.setattr("headscope.model.weights.asked.BATCH", 7)
    for layer, found in layer_weights(model).items():
        for name in ("w_q", "w_k", "w_v", "w_o"):
            close(getattr(found, name), getattr(whole[layer], name))


def test_what_only_passes_the_heads_results_on_is_not_what_they_write():
    # 4 heads of 6 are as wide as the stream: an identity on their results has the shape of an output too.
    torch.manual_seed(0)
    written = Written(project="parameters", out="matmul").eval()
    for block in written.blocks:
        attention = block.attention
        attention.idle, output = nn.Identity(), attention.output
        attention.output = lambda z, idle=attention.idle, output=output: output(idle(z))
    for layer, found in layer_weights(load(written)).items():
        close(found.w_o, written.blocks[layer].attention.w_o.view(4, 6, 24))


@pytest.mark.parametrize("choices", [{"twist": "gate"}, {"block": "post"}], ids=str)
def test_parameters_that_do_not_read_a_module_of_the_block_affinely_are_refused(choices):
    with pytest.raises(UnsupportedModel, match="are not outputs of linear layers|gated, normalised|changed"):
        layer_weights(load(Written(project="parameters", out="matmul", **choices).eval()))
