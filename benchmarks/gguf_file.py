"""A tiny Llama as a file of GGUF, as llama.cpp writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def gguf_of(hf: Any, path: Path, *, without: Sequence[str] = (), **more: Any) -> Path:
    """A tiny Llama as llama.cpp writes it: rows of queries and keys in pairs instead of halves."""
    import gguf

    config = hf.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for key, value in more.pop("floats", {}).items():
        writer.add_float32(key, value)

    def paired(weight: Tensor, n_heads: int) -> Tensor:
        return weight.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)

    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{own}": f"blk.{layer}.{given}" for own, given in parts.items()}
    for name, weight in hf.state_dict().items():
        given = names[name.removesuffix(".weight")]
        if given in without:
            continue
        if given.endswith("attn_q"):
            weight = paired(weight, config.num_attention_heads)
        elif given.endswith("attn_k"):
            weight = paired(weight, config.num_key_value_heads)
        writer.add_tensor(f"{given}.weight", weight.contiguous().numpy())
    for name, tensor in more.items():
        writer.add_tensor(name.replace("__", "."), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
