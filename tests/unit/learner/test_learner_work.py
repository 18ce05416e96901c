"""The arithmetic of a token: experts count as visited, frozen weights have no gradient."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.tiny_models import tiny
from rlhf_ray.config.base import ModelConfig
from rlhf_ray.learner.work import flops_per_token
from rlhf_ray.metrics.flops import update_mfu
from rlhf_ray.models.load import load_causal_lm

CPU = torch.device("cpu")


def sizes(model):
    return {name: parameter.numel() for name, parameter in model.named_parameters()}


def test_every_trained_weight_costs_6(make_model):
    model = AutoModelForCausalLM.from_pretrained(make_model("llama"))
    assert flops_per_token(model) == 6 * sum(sizes(model).values())


def test_frozen_weights_cost_4_and_adapters_6(make_model):
    path = make_model("llama")
    config = ModelConfig.model_validate({"path": str(path), "lora": {"rank": 2}})
    lm = load_causal_lm(config, device=CPU)
    of_adapters = sum(p.numel() for p in lm.parameters() if p.requires_grad)
    of_base = sum(sizes(AutoModelForCausalLM.from_pretrained(path)).values())
    assert 0 < of_adapters < of_base
    assert flops_per_token(lm) == 4 * of_base + 6 * of_adapters


def test_of_experts_those_count_that_a_token_visits(make_model):
    path = make_model("mixtral", num_local_experts=4, num_experts_per_tok=1)
    model = AutoModelForCausalLM.from_pretrained(path)
    of_experts = sum(size for name, size in sizes(model).items() if ".experts." in name)
    others = sum(sizes(model).values()) - of_experts
    assert of_experts > 0
    assert flops_per_token(model) == pytest.approx(6 * (others + of_experts / 4))


@pytest.mark.parametrize("family", ["granitemoe", "jetmoe", "deepseek_v3", "qwen2_moe"])
def test_experts_count_alike_whatever_a_family_calls_them(family):
    model, _ = tiny(family)
    assert model.config.num_experts_per_tok == 2
    stacks = [p.numel() for p in model.parameters() if p.ndim == 3 and p.shape[0] == 4]
    assert sum(stacks) > 0
    others = sum(sizes(model).values()) - sum(stacks)
    assert flops_per_token(model) == pytest.approx(6 * (others + sum(stacks) / 2))


def test_utilisation_is_the_share_of_all_devices_peak():
    assert update_mfu(
        flops_per_token=6e9, num_tokens=1000, seconds=2.0, num_devices=3, peak=1e12
    ) == pytest.approx(1.0)
