"""Parameter counts from `config.json` alone are within 2 % of transformers' own modules.

At the sizes of small real models: norms, biases, positions and poolers are left out.
"""

from __future__ import annotations

import json

import pytest

from rlhf_ray.errors import ConfigError
from rlhf_ray.models.shape import FAMILIES, read_shape, shape_of

SIZES = {
    "vocab_size": 30_000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 4}
OPT = {key: value for key, value in SIZES.items() if key != "intermediate_size"}
GPT2 = {"vocab_size": 30_000, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 512}
EXPERTS = {
    **GROUPED,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 320,
    "head_dim": 64,
}
# Where weights are made.
TINY = {
    "vocab_size": 301,
    "hidden_size": 48,
    "intermediate_size": 76,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
}

CAUSAL = [
    ("llama", GROUPED),
    ("llama", {**GROUPED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {**SIZES, "head_dim": 128}),
    ("mistral", GROUPED),
    ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("smollm3", GROUPED),
    ("granite", GROUPED),
    ("qwen2", GROUPED),
    ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 448}),
    (
        "qwen2_moe",
        {**EXPERTS, "shared_expert_intermediate_size": 448, "decoder_sparse_step": 2},
    ),
    ("qwen3", {**GROUPED, "head_dim": 128}),
    ("qwen3_moe", {**EXPERTS, "mlp_only_layers": [1]}),
    ("gemma", {**GROUPED, "head_dim": 128}),
    ("gemma2", {**GROUPED, "head_dim": 128}),
    ("gemma3_text", {**GROUPED, "head_dim": 128}),
    ("phi3", GROUPED),
    ("phi", SIZES),
    ("olmo", GROUPED),
    ("olmo2", GROUPED),
    ("cohere", GROUPED),
    ("cohere", {**GROUPED, "use_qk_norm": True}),
    ("starcoder2", GROUPED),
    ("stablelm", {**GROUPED, "use_qkv_bias": True}),
    ("gpt2", GPT2),
    ("gpt2", {**GPT2, "n_inner": 1600, "tie_word_embeddings": False}),
    ("gptj", {**GPT2, "rotary_dim": 64}),
    (
        "gpt_neo",
        {
            "vocab_size": 30_000,
            "hidden_size": 768,
            "num_layers": 12,
            "num_heads": 12,
            "max_position_embeddings": 512,
            "attention_types": [[["global", "local"], 6]],
        },
    ),
    ("gpt_neox", SIZES),
    ("opt", {**OPT, "ffn_dim": 1440}),
    ("opt", {**OPT, "ffn_dim": 3072, "word_embed_proj_dim": 384, "do_layer_norm_before": False}),
    ("bloom", {"vocab_size": 30_000, "hidden_size": 768, "n_layer": 12, "n_head": 12}),
]
CLASSIFIERS = [
    ("llama", GROUPED),
    ("qwen2", GROUPED),
    ("gpt2", GPT2),
    ("opt", {**OPT, "ffn_dim": 3072, "word_embed_proj_dim": 384}),
    ("bert", SIZES),
    ("roberta", SIZES),
    ("xlm-roberta", SIZES),
    ("deberta-v2", SIZES),
    (
        "deberta-v2",
        {
            **SIZES,
            "relative_attention": True,
            "position_buckets": 256,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
    (
        "distilbert",
        {
            "vocab_size": 30_000,
            "dim": 768,
            "hidden_dim": 3072,
            "n_layers": 6,
            "n_heads": 12,
            "max_position_embeddings": 512,
        },
    ),
    ("modernbert", SIZES),
]


def ids(case):
    name, settings = case
    return f"{name}-{len(settings)}-{sum(map(len, settings))}"


def counted(auto, config):
    import torch

    with torch.device("meta"):
        model = auto.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


ADAPTED = [
    ("llama", GROUPED),
    ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 448}),
    ("qwen3_moe", EXPERTS),
]


@pytest.mark.parametrize("case", ADAPTED, ids=ids)
def test_adapters_are_counted_as_peft_puts_them_on(case):
    from transformers import AutoConfig, AutoModelForCausalLM

    from rlhf_ray.config.models import ModelConfig
    from rlhf_ray.models.load import with_adapter

    name, settings = case
    config = AutoConfig.for_model(name, **{**settings, **TINY})
    model = AutoModelForCausalLM.from_config(config)
    model = with_adapter(model, ModelConfig.model_validate({"path": name, "lora": {"rank": 3}}))
    assert shape_of(config.to_dict()).num_adapter(3, "all-linear") == sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )


@pytest.mark.parametrize("written", ["whole", "diff"])
@pytest.mark.parametrize("case", CAUSAL, ids=ids)
def test_a_causal_model_has_as_many_parameters(case, written, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    name, settings = case
    config = AutoConfig.for_model(name, **settings)
    # Published files leave out what equals transformers' own default.
    config.to_json_file(tmp_path / "config.json", use_diff=written == "diff")
    found = read_shape(tmp_path).num_parameters("lm")
    assert found == pytest.approx(counted(AutoModelForCausalLM, config), rel=0.02)


@pytest.mark.parametrize("case", CLASSIFIERS, ids=ids)
def test_a_classifier_has_as_many_parameters(case, tmp_path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    name, settings = case
    config = AutoConfig.for_model(name, **settings, num_labels=1)
    config.to_json_file(tmp_path / "config.json")
    found = read_shape(tmp_path).num_parameters("score")
    assert found == pytest.approx(counted(AutoModelForSequenceClassification, config), rel=0.02)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["self_attn.o_proj", "down_proj"]])
@pytest.mark.parametrize("case", [c for c in CAUSAL if c[0] in ("llama", "qwen2_moe")], ids=ids)
def test_adapters_are_on_the_matrices_that_peft_finds(case, targets, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    name, settings = case
    config = AutoConfig.for_model(name, **settings)
    config.to_json_file(tmp_path / "config.json")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        adapted = get_peft_model(model, LoraConfig(r=1, target_modules=targets))
    assert read_shape(tmp_path).num_adapter(1, targets) == adapted.get_nb_trainable_parameters()[0]


def test_every_family_is_compared():
    assert {name for name, _ in [*CAUSAL, *CLASSIFIERS]} == set(FAMILIES)


def test_real_models_have_the_parameters_that_they_are_named_for():
    llama = {
        "model_type": "llama",
        "vocab_size": 128256,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    }
    small = {**llama, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    large = {
        **llama,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    }
    assert shape_of(small).num_parameters("lm") == pytest.approx(8_030_261_248, rel=1e-3)
    assert shape_of(large).num_parameters("lm") == pytest.approx(70_553_706_496, rel=1e-3)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_shape(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ConfigError, match="cannot plan for models of type 'mamba'; known are bert"):
        read_shape(tmp_path)
    file.write_text(json.dumps({"model_type": "llama", "vocab_size": 8}))
    with pytest.raises(ConfigError, match="lacks or misstates a size: 'hidden_size'"):
        read_shape(file)
