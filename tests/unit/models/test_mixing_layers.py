"""Layers that would mix packed sequences are known, and get none."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
)

from rlhf_ray.config.model_limits import read_limits
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import attention
from rlhf_ray.models.batch import lay_out
from rlhf_ray.models.decoder import decode, mixing_layers
from rlhf_ray.models.reward import RewardModel

CPU = torch.device("cpu")
LENGTHS = (5, 9, 4)
SMALL = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "pad_token_id": 0,
}  # fmt: skip
HYBRID = {
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 16,
        "linear_value_head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    },
    "falcon_h1": {
        "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16,
        "mamba_n_groups": 1,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 64},
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_attention():
    attention.register()
    torch.manual_seed(0)


def config_of(kind):
    return CONFIG_MAPPING[kind](**SMALL, **HYBRID.get(kind, {}))


def sequences():
    return [np.arange(3, 3 + length, dtype=np.int32) for length in LENGTHS]


def hidden_states(decoder, sequences, *, padded):
    layout = lay_out(sequences, padded=padded, device=CPU)
    with torch.no_grad():
        hidden_ND = decode(decoder, layout).hidden_ND
    return [
        hidden_ND[start : start + len(ids)]
        for start, ids in zip(layout.starts_B.tolist(), sequences, strict=True)
    ]


@pytest.mark.parametrize("kind", HYBRID)
def test_a_model_whose_layers_mix_sequences_runs_padded_alone(kind, tmp_path):
    model = AutoModelForCausalLM.from_config(config_of(kind), attn_implementation=attention.NAME)
    decoder = model.eval().base_model
    with pytest.raises(ConfigError, match=f"layout must be padded for {kind}, whose layers"):
        hidden_states(decoder, sequences(), padded=False)
    together = hidden_states(decoder, sequences(), padded=True)
    for ids, among_others in zip(sequences(), together, strict=True):
        [alone] = hidden_states(decoder, [ids], padded=True)
        torch.testing.assert_close(among_others, alone, rtol=1e-4, atol=1e-5)
    model.config.save_pretrained(tmp_path)
    limits = read_limits(tmp_path)
    assert limits is not None
    assert limits.mixes_sequences


def test_a_reward_model_with_such_layers_is_padded_whatever_is_asked():
    config = config_of("qwen3_next")
    config.num_labels = 1
    lm = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention.NAME)
    model = RewardModel(lm.eval())

    def scores(sequences):
        with torch.no_grad():
            return model(model.lay_out(sequences, padded=False, device=CPU)).scores_B

    alone = torch.cat([scores([ids]) for ids in sequences()])
    torch.testing.assert_close(scores(sequences()), alone, rtol=1e-4, atol=1e-5)


# Without a list their layers are attention by default, and seldom so on the hub.
UNLISTED = {"lfm2", "lfm2_moe"}


def described():
    """Every decoder that transformers knows: its default configuration, and whether it mixes."""
    for kind, names in {**CLASSIFIERS, **CAUSAL}.items():
        if kind.startswith("musicgen") or kind.endswith("assistant"):
            continue  # they need other models' configurations
        config = CONFIG_MAPPING[kind]()
        cls = getattr(transformers, names if isinstance(names, str) else names[0])
        yield (
            config,
            bool(mixing_layers(SimpleNamespace(config=config, _is_stateful=cls._is_stateful))),
        )


def test_the_file_alone_tells_of_every_model_in_transformers(tmp_path):
    """Whether or not it lists its layers, as those on the hub may not."""
    wrong = []
    for config, mixes in described():
        text = config.get_text_config()
        short = {"model_type": config.model_type}
        if text is not config:
            short["text_config"] = {"model_type": text.model_type}
        full = json.loads(config.to_json_string(use_diff=False))
        for file in (full, short):
            unlisted = text.model_type in UNLISTED and not file.get("layer_types")
            (tmp_path / "config.json").write_text(json.dumps(file))
            limits = read_limits(tmp_path)
            if limits is None or limits.mixes_sequences != (mixes or unlisted):
                wrong.append((config.model_type, "layer_types" in file))
    assert wrong == []
