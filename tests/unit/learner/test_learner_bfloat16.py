"""bfloat16: what trains is kept in float32 by the optimiser, and it does learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from learning import logprobs_of, plan_evaluation, plan_of, plan_rows
from quantized import dequantize, quantize
from torch.nn import functional

from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.learner.deepspeed.engine import ZeroEngine
from rlhf_ray.models import load

MODEL = {"dtype": "bfloat16", "lora": {"rank": 4, "alpha": 8.0}}


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_bfloat16_reward_model_with_adapters_learns(make_supervised, make_model, rankings, stage):
    learner = make_supervised(
        "rm",
        path=make_model("llama"),
        job={"loss_type": "bradley_terry"},
        model=MODEL,
        zero={"stage": stage},
        optim={"lr": 1e-2},
    )
    plan = plan_evaluation(rankings)
    start = learner.evaluate(rankings, plan).metrics["loss"]
    for _ in range(12):
        metrics = learner.update(rankings, plan_rows(rankings))
        assert metrics["skipped_steps"] == 0
    assert learner.evaluate(rankings, plan).metrics["loss"] < 0.5 * start
    trained = {
        name: parameter.dtype
        for name, parameter in learner.engine.module.named_parameters()
        if parameter.requires_grad
    }
    assert trained and set(trained.values()) == {torch.bfloat16}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in trained} >= {"default", "score"}


class Routed(torch.nn.Module):
    """Weights in bfloat16 beside a router that its family keeps in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.router = torch.nn.Parameter(torch.ones(8))
        self.expert = torch.nn.Parameter(torch.ones(8, dtype=torch.bfloat16))

    def forward(self) -> torch.Tensor:
        return self.router.float().sum() + self.expert.float().sum()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_steps_below_bfloat16s_own_add_up_beside_a_float32_router(stage):
    module = Routed()
    # 1 - 1e-3 is 1 in bfloat16, whose next number below is 1 - 2^-8.
    config = LearnerConfig.model_validate(
        {"zero": {"stage": stage}, "optim": {"lr": 1e-3, "warmup_steps": 0, "weight_decay": 0.0}}
    )
    engine = ZeroEngine(module, config, total_steps=20, device=torch.device("cpu"))
    for _ in range(20):
        engine.backward(engine(), is_last=True)
        assert engine.step().applied
    for weight in module.parameters():
        torch.testing.assert_close(weight.float(), torch.full((8,), 0.98), atol=2e-3, rtol=0.0)
    engine.close()


def test_a_frozen_float32_router_stays_exact_beside_bfloat16():
    module = Routed()
    with torch.no_grad():
        module.router.fill_(1.001)  # 1 in bfloat16
    module.router.requires_grad_(False)
    engine = ZeroEngine(module, LearnerConfig(), total_steps=20, device=torch.device("cpu"))
    assert module.router.dtype is torch.float32
    assert torch.equal(module.router, torch.full((8,), 1.001))
    engine.close()


@pytest.fixture
def computed_in(monkeypatch):
    """Dtypes that attention is given, by every pass from now on."""
    found = set()
    attend = functional.scaled_dot_product_attention

    def attending(query, key, value, **keywords):
        found.update(states.dtype for states in (query, key, value))
        return attend(query, key, value, **keywords)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attending)
    return found


@pytest.fixture(params=["plain", "quantized"])
def make_adapted(request, make_policy, make_model, monkeypatch):
    """A bfloat16 policy with adapters, on plain weights or on such in 4 bit."""
    path = make_model("llama", tie_word_embeddings=False)
    quantization = {"plain": "none", "quantized": "4bit"}[request.param]

    def make(**settings):
        if request.param == "quantized":
            real = load.load_pretrained

            def loaded(kind, what, config, **keywords):
                plain = config.model_copy(update={"quantization": "none"})
                found, missing = real(kind, what, plain, **keywords)
                return quantize(found), missing

            monkeypatch.setattr(load, "load_pretrained", loaded)
        model = {**MODEL, "quantization": quantization}
        return make_policy(path=path, model=model, **settings)

    return make


def test_adapters_let_attention_and_head_compute_in_bfloat16(make_adapted, rows, computed_in):
    learner = make_adapted()
    computed_in.clear()
    inputs = {"head": set(), "norm": set(), "adapter": set()}
    layer = learner.lm.get_base_model().model.layers[1]
    watched = {
        "head": learner.lm.get_output_embeddings(),
        "norm": layer.input_layernorm,
        "adapter": layer.mlp.down_proj.lora_A["default"],
    }
    for name, module in watched.items():
        module.register_forward_pre_hook(
            lambda _, given, name=name: inputs[name].add(given[0].dtype)
        )
    metrics = learner.update(rows, plan_of(rows), 0.0)
    assert metrics["skipped_steps"] == 0
    assert computed_in == {torch.bfloat16}
    assert inputs == {name: {torch.bfloat16} for name in watched}


def test_adapters_are_summed_and_stepped_on_in_float32(make_adapted, rows):
    learner = make_adapted(optim={"lr": 1e-6})
    trained = {n: p for n, p in learner.model.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    before = {name: safe_get_full_fp32_param(p).clone() for name, p in trained.items()}
    for _ in range(2):
        learner.update(rows, plan_of(rows), 0.0)
    for name, parameter in trained.items():
        master = safe_get_full_fp32_param(parameter)
        moment = safe_get_full_optimizer_state(parameter, "exp_avg")
        assert master.dtype is moment.dtype is torch.float32
        assert not torch.equal(master, before[name]), "a step that bfloat16 has no numbers for"


def test_adapted_bfloat16_is_as_near_to_float32_as_plain_bfloat16(
    make_adapted, make_policy, make_model, rows
):
    def distance(ours, theirs):
        return np.abs(np.concatenate(ours) - np.concatenate(theirs)).mean()

    path = make_model("llama", tie_word_embeddings=False)
    plain = logprobs_of(make_policy(path=path, model={"dtype": "bfloat16"}), rows)
    rounding = distance(plain, logprobs_of(make_policy(path=path), rows))
    learner = make_adapted(optim={"lr": 3e-2})
    learner.update(rows, plan_of(rows), 0.0)
    ours = logprobs_of(learner, rows)
    learner.model.lm = dequantize(learner.lm)
    learner.model.head.__dict__["lm"] = learner.lm
    theirs = logprobs_of(learner, rows)
    assert distance(ours, theirs) < 2.0 * rounding
    assert distance(ours, plain) > 5.0 * rounding, "adapters do something"
