"""Weights in memory give the model that its folder would, and the engine that runs serves it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.learner.export import export_description
from rlhf_ray.models import memory
from rlhf_ray.models.identity import engine_identity
from rlhf_ray.models.load import load_causal_lm

CPU = torch.device("cpu")


@pytest.fixture
def described(stories, tmp_path):
    """Folder of a changed model without weights, and those weights."""
    lm = AutoModelForCausalLM.from_pretrained(stories)
    lm.config.save_pretrained(tmp_path)
    lm.generation_config.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(stories).save_pretrained(tmp_path)
    weights = {name: weight.detach() + 1 for name, weight in lm.named_parameters()}
    yield str(tmp_path), weights
    memory.forget(str(tmp_path))


def identity(path, **settings):
    return engine_identity(ModelConfig(path=str(path), **settings))


def test_what_is_held_is_loaded_with_its_end_tokens(described, stories):
    path, weights = described
    memory.provide(path, weights)
    lm = load_causal_lm(ModelConfig(path=path), device=CPU)
    assert all(torch.equal(weight, weights[name]) for name, weight in lm.named_parameters())
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    assert lm.generation_config.eos_token_id == [1, 2]


def test_what_is_forgotten_is_looked_for_in_the_folder(described):
    path, weights = described
    memory.provide(path, weights)
    memory.forget(path)
    with pytest.raises(ConfigError, match="cannot load a causal language model"):
        load_causal_lm(ModelConfig(path=path), device=CPU)


def test_a_saved_copy_needs_no_engine_of_its_own(described, stories):
    assert identity(described[0]) == identity(stories)


def test_an_export_that_names_its_templates_end_needs_none_either(stories, tmp_path):
    """As a stage exports it that was given the template by the configuration."""
    template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(stories)
    tokenizer.add_tokens("<|end|>", special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "before")
    lm = AutoModelForCausalLM.from_pretrained(stories)
    lm.save_pretrained(tmp_path / "before")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "run")
    export_description(lm, tmp_path / "export", str(tmp_path / "run"))
    assert identity(tmp_path / "before") != identity(tmp_path / "export")
    assert identity(tmp_path / "before", chat_template=template) == identity(tmp_path / "export")


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "rms_norm_eps", 1e-3),
        ("config.json", "hidden_size", 128),
        ("generation_config.json", "eos_token_id", 2),
        ("tokenizer_config.json", "eos_token", "<s>"),
    ],
)
def test_another_architecture_or_tokenizer_does(described, tmp_path_factory, file, key, value):
    other = tmp_path_factory.mktemp("other") / "model"
    shutil.copytree(described[0], other)
    values = json.loads((other / file).read_text())
    (other / file).write_text(json.dumps({**values, key: value}))
    assert identity(other) != identity(described[0])


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the configuration of model"):
        identity(tmp_path)
