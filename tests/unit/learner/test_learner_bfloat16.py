"""bfloat16 with adapters: what trains is kept in float32 by the optimiser, and it does learn."""

from __future__ import annotations

import pytest
import torch
from learning import plan_evaluation, plan_rows

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
