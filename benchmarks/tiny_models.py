"""A tiny random model of every decoder family in transformers, in which every number matters.

    model, config = tiny("qwen3_moe")

Families are the model types of transformers' mapping of causal language models. A configuration is
the family's own with small shapes laid over it: 2 layers, or one of each kind that it has. Weights
and persistent buffers are random, none 0 and no norm all 1, so that what is lost or applied
wrongly shows in the logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB_SIZE = 160

# Why no language model of tokens alone can be made of these.
UNBUILDABLE = {
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "drafts tokens from the hidden states of another model",
    ),
    **dict.fromkeys(
        ("musicgen", "musicgen_melody"), "speaks of sounds, from the states of a text encoder"
    ),
    "gemma3n": "its part for images needs the package timm; gemma3n_text is the language model",
}

# Small values of what families call their shapes, wherever they have a whole number of that name.
_SHAPES = {
    # Layers, heads; experts of a token.
    2: "num_hidden_layers n_layer n_layers num_layers num_blocks decoder_layers encoder_layers"
    " num_decoder_layers num_encoder_layers num_layers_per_stack depth"
    " num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads"
    " encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads"
    " swa_num_attention_heads num_query_groups linear_num_value_heads"
    " linear_num_heads num_experts_per_tok num_experts_per_token moe_topk moe_k zero_expert_num"
    " n_mamba_heads",
    # Heads of keys; shared experts, groups of experts, layers without any.
    1: "num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads n_groups"
    " mamba_n_groups mamba_ngroups n_shared_experts num_shared_experts moe_num_shared_experts"
    " n_group topk_group num_expert_group first_k_dense_replace num_dense_layers",
    4: "num_experts num_local_experts n_routed_experts moe_num_experts mamba_n_heads"
    " mamba_num_heads",
    64: "hidden_size d_model n_embd dim_model embedding_dim embedding_size word_embed_proj_dim"
    " emb_dim hidden_size_global attention_hidden_size lru_width mamba_d_ssm input_embedding_size"
    " output_embedding_size text_hidden_size projection_dim output_hidden_size output_channels",
    32: "head_dim d_head dim_head attention_head_size kv_channels attention_head_dim"
    " index_head_dim swa_head_dim v_head_dim kv_lora_rank q_lora_rank o_lora_rank image_size",
    16: "qk_nope_head_dim qk_rope_head_dim rotary_dim mamba_d_head mamba_head_dim mamba_headdim"
    " linear_key_head_dim linear_value_head_dim linear_head_dim",
    96: "intermediate_size ffn_dim dff dim_ff d_inner decoder_ffn_dim encoder_ffn_dim"
    " ffn_hidden_size intermediate_size_mlp feed_forward_size dense_intermediate_size mlp_dim",
    48: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size"
    " moe_shared_expert_intermediate_size shared_intermediate_size router_hidden_size",
    # Sizes of states and low ranks; how far windows, chunks and indices reach. With few heads that
    # choose keys (DeepSeek 3.2) most scores are exactly 0, and which of them win is arbitrary.
    8: "index_n_heads state_size ssm_state_size mamba_d_state mamba_dt_rank time_step_rank"
    " hidden_size_per_layer_input laurel_rank adapter_rank hc_lowrank sliding_window"
    " sliding_window_size attention_window_size window_size local_attention attention_chunk_size"
    " chunk_size mamba_chunk_size index_topk",
    256: "max_position_embeddings n_positions n_ctx max_seq_len context_length"
    " max_target_positions max_source_positions",
    VOCAB_SIZE: "vocab_size vocab_size_per_layer_input decoder_vocab_size",
}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# What the shapes leave open or contradict: model type of the language model -> settings.
_HYBRID: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention"]}
_LATENT: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}
_OWN: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT,
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "codegen": {"n_head": 4, "n_embd": 128},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [4, 4, 8],
            }
        },
        "layer_types": ["full_attention"] * 2,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "rope_theta": 1e4, "clip_qkv": 4.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {**_LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "diffllama": {"num_key_value_heads": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "intermediate_size": [96] * 4,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": {"final_logit_softcapping": 3.0},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _LATENT,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, **_HYBRID},
    "hrm_text": {"num_layers_per_stack": None},
    "hunyuan_v1_dense": {"head_dim": 32},
    "hunyuan_v1_moe": {"head_dim": 32},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"num_key_value_heads": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": _LATENT,
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "minicpm3": _LATENT,
    "ministral": {"head_dim": 32},
    "nemotron": {"num_key_value_heads": 1, "head_dim": 32},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 32,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 48],
    },
    "roc_bert": {
        "pronunciation_vocab_size": 32,
        "shape_vocab_size": 32,
        "pronunciation_embed_dim": 32,
        "shape_embed_dim": 32,
    },
    "xlstm": {"qk_dim_factor": 1.0, "v_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "youtu": _LATENT,
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 64,
    },
    "zamba2": {
        "n_mamba_heads": 8,
        "num_key_value_heads": 2,
        "attention_hidden_size": 128,
        "attention_head_dim": 64,
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def family_names() -> list[str]:
    """The model types that `tiny` makes a model of."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - UNBUILDABLE.keys())


def tiny(
    model_type: str, *, auto: Any = AutoModelForCausalLM, seed: int = 0, **settings: Any
) -> tuple[PreTrainedModel, Any]:
    """A float32 model in evaluation mode, and its configuration.

    Args:
        model_type: One of `family_names()`.
        auto: Which of transformers' auto classes.
        seed: Of the weights.
        settings: Laid over the tiny configuration.
    """
    config = tiny_config(model_type, **settings)
    torch.manual_seed(seed)
    model = auto.from_config(config, dtype=torch.float32).eval()
    fill(model, seed=seed)
    return model, config


def tiny_config(model_type: str, **settings: Any) -> Any:
    """The family's configuration with small shapes, those of its parts included."""
    kind = CONFIG_MAPPING[model_type]
    default = kind()
    text = default.get_text_config()
    parts = {name: part for name in default.sub_configs if (part := getattr(default, name, None))}
    small = _small(default) | {name: _small(part) for name, part in parts.items()}
    own = _small(text) | _OWN.get(text.model_type, {}) | settings
    if text is default:
        return kind(**(small | own))
    name = next(name for name, part in parts.items() if part is text)
    return kind(**(small | {name: own}))


def fill(model: nn.Module, *, seed: int = 0) -> None:
    """Random numbers in every parameter and persistent buffer of floats; norms lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in _state(model):
            noise = torch.randn(tensor.shape, generator=generator)
            near_one = tensor.ndim == 1 and bool((tensor == 1).all())
            spread = 0.2 if tensor.ndim < 2 else 1.0 / tensor.shape[-1] ** 0.5
            tensor.copy_(noise * spread + near_one)


def _state(model: nn.Module) -> Iterator[torch.Tensor]:
    seen = set()
    for tensor in model.state_dict(keep_vars=True).values():
        if tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def _small(default: Any) -> dict[str, Any]:
    known = default.to_dict()
    small: dict[str, Any] = {
        name: value
        for value, names in _SHAPES.items()
        for name in names.split()
        if type(known.get(name)) is int
    }
    small |= {name: value for name, value in _TOKENS.items() if name in known}
    if "is_decoder" in known:
        small["is_decoder"] = True
    if kinds := list(dict.fromkeys(known.get("layer_types") or ())):
        small["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        small["num_hidden_layers"] = len(small["layer_types"])
    return small
