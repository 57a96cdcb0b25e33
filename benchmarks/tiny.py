"""A tiny random model of every causal language-model family that transformers knows.

What holds for one architecture says little about the next, and no checkpoint fits into a test. So each family's
default config is shrunk by the names of its fields: to a width of 64; to 4 heads of 32, two of which share a key-value
head; to windows and top-k selections of 8 tokens, which bite on a prompt of 24; and to the fewest layers, 2 to 4, that
show every kind of layer the family has. Then every parameter is made random: no zero bias and no unit gain hides an
error.

Cost: about 10 ms and half a megabyte per model once the family's module is imported; towers for images or sound make
two of 15 MB.

It misleads where a family's checkpoints differ from its defaults: an option that is off by default is off here too,
except for those that `SPECIAL` turns on.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

VOCAB_SIZE = 128
"""Every id from 0 to here is a token; the last few are the special tokens that were beyond it."""

MAX_LAYERS = 4
"""The most layers a model gets, and enough to show every kind of layer of every family."""

MATRIX_GAIN = 1.5
"""Root mean square of a matrix's output for inputs of 1: queries meet keys with logits of about 2, far from uniform."""

EMBEDDING_STD = 0.5
"""Below `MATRIX_GAIN`: where the embedding is also the unembedding, logits stay of order 1."""

VECTOR_STD = 0.2
"""Noise added to gains and biases, around whatever value the family starts them at."""

HEAD_STD = 1.0
"""Noise added to vectors of at most `HEAD_NUMEL` entries: sinks, gates and temperatures, one per head or per layer."""

HEAD_NUMEL = 8
"""The longest such vector."""

SIZES: Mapping[str, int | float | bool] = MappingProxyType(
    {
        name: size
        for size, names in (
            (64, "hidden_size d_model n_embd embedding_size dim_model emb_dim embedding_dim lru_width"),
            (64, "word_embed_proj_dim input_embedding_size output_embedding_size backbone_hidden_size"),
            (64, "pronunciation_embed_dim shape_embed_dim out_hidden_size mamba_d_ssm"),
            (64, "hidden_size_global adapter_in_dim adapter_out_dim adapter_input_size vision_embed_dim"),
            (96, "intermediate_size n_inner ffn_dim ffn_hidden_size decoder_ffn_dim encoder_ffn_dim dim_ff dff"),
            (96, "d_inner feed_forward_size intermediate_size_mlp dense_intermediate_size"),
            (32, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size"),
            (32, "shared_experts_intermediate_size moe_shared_expert_intermediate_size"),
            (32, "expert_ffn_hidden_size router_hidden_size q_lora_rank o_lora_rank hc_lowrank"),
            (4, "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"),
            (4, "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads"),
            (4, "swa_num_attention_heads linear_num_heads linear_num_value_heads n_mamba_heads"),
            (4, "mamba_n_heads mamba_num_heads index_n_heads indexer_n_heads"),
            (2, "linear_num_key_heads n_groups mamba_n_groups mamba_ngroups"),
            (32, "head_dim"),
            (16, "dim_head d_head attention_head_size swa_head_dim kv_channels v_head_dim"),
            (16, "qk_nope_head_dim index_head_dim linear_head_dim linear_key_head_dim"),
            (16, "linear_value_head_dim mamba_head_dim kv_lora_rank"),
            (16, "mamba_d_state state_size ssm_state_size mamba_chunk_size"),
            (16, "hidden_size_per_layer_input laurel_rank gated_norm_rank adapter_rank rel_extent"),
            (24, "qk_head_dim"),
            (8, "qk_rope_head_dim rotary_dim sliding_window sliding_window_size window_size"),
            (8, "attention_window_size attention_chunk_size keep_window_size local_attention"),
            (8, "local_attention_window_len index_topk floor_scale log_scaling_n_floor"),
            (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
            (2, "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k zero_expert_num"),
            (128, "max_position_embeddings n_positions n_ctx max_seq_len context_length"),
            (128, "max_target_positions max_source_positions original_max_position_embeddings"),
            (128, "model_max_length"),
            (4, "query_pre_attn_scalar"),
            (5.0, "attn_logit_softcapping"),
            (1.0, "logit_scale logits_mup_width_multiplier"),
            (True, "use_sliding_window is_decoder"),
        )
        for name in names.split()
    }
)
"""What a field of a config becomes, where the family has it and its default is a number."""

AT_MOST: Mapping[str, int] = MappingProxyType(
    {
        name: size
        for size, names in (
            (2, "num_key_value_heads num_kv_heads swa_num_key_value_heads kv_n_heads"),
            (1, "n_group topk_group num_expert_group first_k_dense_replace num_dense_layers"),
            (1, "decoder_sparse_step max_window_layers"),
        )
        for name in names.split()
    }
)
"""Likewise, but a smaller default stays: one key-value head remains one, no dense layers remain none."""

LAYER_COUNTS = (
    "num_hidden_layers n_layer n_layers num_layers num_blocks depth "
    "decoder_layers encoder_layers num_decoder_layers num_encoder_layers"
).split()


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """What the general rule misses in one family."""

    reason: str
    """Why the fields are needed."""
    fields: Mapping[str, Any]
    """Config fields by name; a dict goes into the part of the config that has this name."""


def _special(reason: str, **fields: Any) -> Special:
    return Special(reason=reason, fields=fields)


_GEMMA4_TEXT: dict[str, Any] = {"global_head_dim": 64}
_DOTS3_TEXT: dict[str, Any] = {
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 8,
    "swa_q_lora_rank": 32,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 24,
    "swa_qk_nope_head_dim": 16,
    "swa_v_head_dim": 16,
    "head_dim": 24,
}
_QWEN4_TEXT: dict[str, Any] = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 32,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}

SPECIAL: Mapping[str, Special] = MappingProxyType(
    {
        "bamba": _special("no attention layer by default", attn_layer_indices=[1]),
        "blt": _special("its cache needs a layer count its config lacks", use_cache=False),
        "cohere_compass_text": _special(
            "rotary parameters per kind of layer, with sections that fill the head",
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={
                kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}
                for kind in ("sliding_attention", "full_attention")
            },
        ),
        "dbrx": _special(
            "rope_theta is read from a part that does not declare it", attn_config={"rope_theta": 1e4, "clip_qkv": 8.0}
        ),
        "deepseek_v2": _special("no top-k by default", num_experts_per_tok=2),
        "deepseek_v4": _special(
            "compresses 128 tokens into one, more than a prompt has",
            compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
        ),
        "dots1": _special("no experts by default", n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2),
        "dots3_note": _special("its sliding layers have sizes of their own", **_DOTS3_TEXT),
        "dots3_note_text": _special("its sliding layers have sizes of their own", **_DOTS3_TEXT),
        "flint": _special("two dense layers would be all", mlp_only_layers=[0]),
        "gemma3n_text": _special(
            "half of the layers reuse keys and values",
            num_hidden_layers=4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0],
            intermediate_size=96,
            num_kv_shared_layers=2,
        ),
        "gemma4": _special("full layers have a head size of their own", text_config=_GEMMA4_TEXT),
        "gemma4_text": _special("full layers have a head size of their own", **_GEMMA4_TEXT),
        "gemma4_unified": _special("full layers have a head size of their own", text_config=_GEMMA4_TEXT),
        "gemma4_unified_text": _special("full layers have a head size of their own", **_GEMMA4_TEXT),
        "gpt_neo": _special("layers come as a pattern", attention_types=[[["global", "local"], 1]]),
        "granitemoehybrid": _special(
            "no attention layer by default", layer_types=["linear_attention", "full_attention"]
        ),
        "helium": _special("its output projection expects heads that fill the width", head_dim=16),
        "hunyuan_v1_dense": _special("no head_dim by default", head_dim=32),
        "hunyuan_v1_moe": _special("no head_dim by default", head_dim=32),
        "jamba": _special("layers come as a period", attn_layer_period=2, attn_layer_offset=1, expert_layer_offset=0),
        "laguna": _special(
            "head counts may differ between layers",
            layer_types=["full_attention", "sliding_attention"],
            num_attention_heads_per_layer=[4, 8],
            sliding_window=8,
        ),
        "lfm2": _special("no convolution layer by default", layer_types=["conv", "full_attention"]),
        "lfm2_moe": _special("no kinds of layers by default", layer_types=["conv", "full_attention"]),
        "longcat_flash": _special("head_dim means its rotary part", head_dim=8),
        "mellum": _special(
            "no sliding layer by default", layer_types=["full_attention", "sliding_attention"], sliding_window=8
        ),
        "minimax_m3_vl_text": _special(
            "no sparse layer by default",
            layer_types=["full_attention", "minimax_m3_sparse"],
            mlp_layer_types=["dense", "sparse"],
            index_n_heads=2,
            index_block_size=4,
            index_topk_blocks=2,
        ),
        "ministral": _special("no head_dim by default", head_dim=32),
        "musicgen": _special("a batch row is one codebook", num_codebooks=1),
        "musicgen_melody": _special("a batch row is one codebook", num_codebooks=1),
        "nemotron": _special("no key-value heads by default", num_key_value_heads=2),
        "qwen4_exp": _special("its indexer has no sizes by default", **_QWEN4_TEXT),
        "qwen4_exp_text": _special("its indexer has no sizes by default", **_QWEN4_TEXT),
        "recurrent_gemma": _special("attention comes third in its pattern", num_hidden_layers=3),
        "reformer": _special(
            "positions factorise, chunks and buckets replace a window",
            axial_pos_shape=[8, 16],
            axial_pos_embds_dim=[32, 32],
            attn_layers=["local", "lsh"],
            local_attn_chunk_length=8,
            lsh_attn_chunk_length=8,
            num_buckets=4,
            hash_seed=0,
        ),
        "xlm": _special("reads both ways by default", causal=True),
        "xlnet": _special("reads both ways by default", attn_type="uni"),
        "xlstm": _special("its cache takes queries to be as wide as values", qk_dim_factor=1.0),
        "xmod": _special("no default language", default_language="en_XX"),
        "zamba": _special(
            "its shared block is tied only if it is used twice",
            num_hidden_layers=3,
            layers_block_type=["linear_attention", "hybrid", "hybrid"],
        ),
        "zamba2": _special(
            "its shared block shows only if it is used twice",
            num_hidden_layers=3,
            layers_block_type=["linear_attention", "hybrid", "hybrid"],
        ),
        "zaya": _special(
            "routes to one expert; no sliding layer by default",
            num_experts_per_tok=1,
            layer_types=["hybrid", "hybrid_sliding"],
            sliding_window=8,
        ),
    }
)

NOT_BUILT: Mapping[str, str] = MappingProxyType(
    {
        "gemma3n": "its vision tower needs the timm package; gemma3n_text is its language model",
        "gemma4_assistant": "reads another model's hidden states, keys and values, not tokens",
        "gemma4_unified_assistant": "reads another model's hidden states, keys and values, not tokens",
    }
)
"""The families that no tiny model represents, and why."""


def causal_lm_families() -> list[str]:
    """Every model type that the installed transformers can load as a causal language model, `NOT_BUILT` included."""
    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str) -> PretrainedConfig:
    """The family's default config, shrunk by `SIZES`, `AT_MOST` and `SPECIAL`, asking for eager attention.

    Raises:
        ValueError: The family is in `NOT_BUILT`, or transformers knows no such family.
    """
    if family in NOT_BUILT:
        raise ValueError(f"tiny_config: there is no tiny {family}: {NOT_BUILT[family]}.")
    if family not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"tiny_config: transformers knows no causal language model {family!r}; see causal_lm_families()."
        )
    default = CONFIG_MAPPING[family]()
    wanted = _model_class(family).config_class
    part = next((part for part in vars(default).values() if type(part) is wanted), default)
    special = SPECIAL.get(family)
    config = _shrink(part, special.fields if special else {})
    config._attn_implementation = "eager"
    return config


def tiny_causal_lm(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A tiny random model of one family, in eval mode, float32, on the CPU, with eager attention.

    Args:
        family: One of `causal_lm_families()`.
        seed: Decides every parameter. The caller's random state is left as it was.

    Raises:
        ValueError: The family is in `NOT_BUILT`, or transformers knows no such family.
    """
    config = tiny_config(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model_class(family)(config).eval()
        _randomise_(model)
    return model


def _model_class(family: str) -> type[PreTrainedModel]:
    return getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])


def _shrink(config: PretrainedConfig, special: Mapping[str, Any]) -> PretrainedConfig:
    """A new config of the same class, small by name; `special` has the last word."""
    values: dict[str, Any] = {}
    for f in fields(config):  # by vars, not getattr: a field that varies by layer refuses to be read
        value = vars(config).get(config.attribute_map.get(f.name, f.name))
        values[f.name] = f.default if value is None else value  # None: a window that was switched off, say
    small: dict[str, Any] = _fewer_layers(values)
    n_special_tokens = 0
    for name, value in values.items():
        if isinstance(value, PretrainedConfig):
            small[name] = _shrink(value, special.get(name, {}))
        elif name in small or not isinstance(value, int | float | list | tuple):
            continue
        elif name in SIZES and isinstance(value, int | float):
            small[name] = SIZES[name]
        elif name in AT_MOST and isinstance(value, int):
            small[name] = min(value, AT_MOST[name])
        elif "vocab" in name and isinstance(value, int):
            small[name] = min(value, VOCAB_SIZE)
        elif name.endswith(("token_id", "token_index")):
            if isinstance(value, int) and value < VOCAB_SIZE:
                continue
            n_special_tokens += 1
            token = VOCAB_SIZE - n_special_tokens
            small[name] = token if isinstance(value, int) else [token]
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = SIZES["num_attention_heads"]  # latent attention: every head has its own key
    small |= {name: value for name, value in special.items() if not isinstance(small.get(name), PretrainedConfig)}
    return type(config)(**small)


def _fewer_layers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Layer counts and per-layer lists, cut to the fewest layers that keep each kind of layer, and at least two."""
    counts = {name: 2 for name in LAYER_COUNTS if isinstance(values.get(name), int)}
    if not counts:
        return {}
    n_layers = values[next(iter(counts))]
    kinds = {
        name: value
        for name, value in values.items()
        if isinstance(value, list | tuple) and len(value) == n_layers and 2 <= len(set(value)) <= MAX_LAYERS
    }
    missing = {(name, kind) for name, value in kinds.items() for kind in value}
    shows = [{(name, value[layer]) for name, value in kinds.items()} for layer in range(n_layers)]
    kept: list[int] = []
    while missing and len(kept) < MAX_LAYERS:
        best = max(range(n_layers), key=lambda layer: len(missing & shows[layer]))
        kept.append(best)
        missing -= shows[best]
    spare = [layer for layer in range(n_layers) if layer not in kept]
    kept = sorted(kept + spare[: max(0, 2 - len(kept))])
    return {name: len(kept) for name in counts} | {name: [value[i] for i in kept] for name, value in kinds.items()}


@torch.no_grad()
def _randomise_(model: PreTrainedModel) -> None:
    """Draw every parameter again, in place: matrices from scratch, all else as noise around its first value."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if isinstance(module, nn.Embedding) and not parameter.requires_grad:  # a fixed table: sinusoidal positions
                continue
            noise = torch.randn_like(parameter)
            if parameter.ndim < 2 or _is_constant(parameter):
                parameter.add_((HEAD_STD if parameter.numel() <= HEAD_NUMEL else VECTOR_STD) * noise)
            elif isinstance(module, nn.Embedding):
                parameter.copy_(EMBEDDING_STD * noise)
            else:
                parameter.copy_(MATRIX_GAIN * noise / _fan_in(module, parameter) ** 0.5)


def _is_constant(parameter: nn.Parameter) -> bool:
    """Whether its first value is a gain or a schedule, not a draw around zero."""
    mean, std = parameter.mean().abs().item(), parameter.std().item()
    return mean > 0.3 * std


def _fan_in(module: nn.Module, parameter: nn.Parameter) -> int:
    if isinstance(module, Conv1D):
        return parameter.shape[0]
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return parameter[0].numel()
    return parameter.shape[-1]


def tiny_seeing(family: str, *, seed: int = 0) -> PreTrainedModel:
    """A tiny random model of a family that also reads images, as `tiny_causal_lm` makes one.

    Args:
        family: Like `llava`.
        seed: Decides every parameter.
    """
    sections = {"qwen2_vl": [2, 3, 3], "qwen3_vl": [4, 6, 6]}  # of time, height and width; half a head together
    rotary = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": sections.get(family)}
    special = {"text_config": {"rope_parameters": rotary}} if family in sections else {}
    config = _shrink(CONFIG_MAPPING[family](), special)
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[family])(config).eval()
        _randomise_(model)
    return model


def bridged(hf: PreTrainedModel, tokenizer: Any | None = None, *, compatibility: bool = False) -> Any:
    """A bridge around a copy: it puts its own modules between those of the model it is given."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    hf = copy.deepcopy(hf)
    made = build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=tokenizer)
    if compatibility:
        made.enable_compatibility_mode(disable_warnings=True)
    return made


def random_llama_bf16(config: transformers.LlamaConfig, device: str = "cpu") -> transformers.LlamaForCausalLM:
    """Random weights of a Llama's shape, made in bfloat16 on the device."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
