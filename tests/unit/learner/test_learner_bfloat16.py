"""bfloat16: what trains is kept in float32 by the optimiser, and it does learn."""

from __future__ import annotations

import pytest
import torch
from learning import plan_evaluation, plan_rows

from rlhf_ray.config.base import LearnerConfig
from rlhf_ray.learner.engine import TrainingEngine

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
    engine = TrainingEngine(module, config, total_steps=20)
    for _ in range(20):
        engine.backward(engine(), is_last=True)
        assert engine.step().applied
    for weight in module.parameters():
        torch.testing.assert_close(weight.float(), torch.full((8,), 0.98), atol=2e-3, rtol=0.0)
    engine.close()
