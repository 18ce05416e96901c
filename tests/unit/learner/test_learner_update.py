"""Updates on one rank: layouts agree, bad steps are skipped, still parameters are found."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from learning import gradients_of, largest_gap, logprobs_of, parameters_of, plan_of

from rlhf_ray.errors import RunError
from rlhf_ray.packing import plan_forward

STAGES = (0, 1, 2, 3)
UNCLIPPED = {"max_grad_norm": 1e9}


def spoiled(rows, value=math.nan):
    """The first row's first advantage is not finite."""
    advantages_T = rows[0].advantages_T.copy()
    advantages_T[0] = value
    return [replace(rows[0], advantages_T=advantages_T), *rows[1:]]


def gradients(learner, rows, *arguments, padded=False):
    """Of one step over all rows, in several micro-batches."""
    plan = plan_of(rows, minibatches=1, padded=padded)
    assert len(plan.minibatches[0].micro_batches_by_rank[0]) > 2
    assert learner.update(rows, plan, *arguments)["skipped_steps"] == 0
    return gradients_of(learner)


def test_packed_and_padded_have_the_same_gradient(make_policy, make_value, rows):
    for make, arguments in ((make_policy, (0.1,)), (make_value, ())):
        packed, padded = (
            gradients(
                make(layout=layout, optim=UNCLIPPED), rows, *arguments, padded=layout == "padded"
            )
            for layout in ("packed", "padded")
        )
        assert largest_gap(padded, packed) < 1e-5
        assert all(gradient.any() for gradient in packed.values())


def test_a_model_that_needs_rectangles_keeps_the_budget_of_a_packed_plan(make_policy, rows):
    learner = make_policy(layout="auto", optim=UNCLIPPED)
    packed = gradients(learner, rows, 0.1)
    learner = make_policy(layout="auto", optim=UNCLIPPED)
    learner.model.mode = replace(learner.model.mode, packed=False)
    num_positions = []
    learner.model.register_forward_pre_hook(
        lambda _, inputs: num_positions.append(inputs[0].input_ids.numel())
    )
    rectangles = gradients(learner, rows, 0.1)
    longest = max(row.rollout.num_tokens for row in rows)
    assert max(num_positions) <= max(learner.spec.learner.max_tokens_per_micro_batch, longest)
    assert largest_gap(rectangles, packed) < 1e-5


def test_gradient_checkpointing_has_the_same_gradient(make_policy, rows):
    whole, checkpointed = (
        gradients(
            make_policy(model={"gradient_checkpointing": checkpointing}, optim=UNCLIPPED), rows, 0.0
        )
        for checkpointing in (False, True)
    )
    assert largest_gap(checkpointed, whole) < 1e-6


def test_an_update_raises_what_had_an_advantage(make_policy, rows):
    rows = [replace(row, advantages_T=np.ones_like(row.advantages_T)) for row in rows]
    learner = make_policy(algorithm={"policy_loss": "reinforce"}, optim={"lr": 1e-3})
    before = np.concatenate(logprobs_of(learner, rows))
    learner.update(rows, plan_of(rows), 0.0)
    after = np.concatenate(logprobs_of(learner, rows))
    action_mask_T = np.concatenate([row.rollout.action_mask_T for row in rows])
    assert after[action_mask_T].mean() > before[action_mask_T].mean() + 0.01


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_is_skipped_and_written_out(
    make_policy, rows, tmp_path, stage, value
):
    learner = make_policy(zero={"stage": stage})
    before = learner_weights(learner)
    bad = spoiled(rows, value)
    metrics = learner.update(bad, plan_of(rows, minibatches=1), 0.0)
    assert metrics["skipped_steps"] == 1
    for name, weight in learner_weights(learner).items():
        assert torch.equal(weight, before[name]), name
    [written] = (tmp_path / "skipped").iterdir()
    replayed = pickle.loads(written.read_bytes())
    assert sorted(row.rollout.prompt.prompt_id for row in replayed) == sorted(
        row.rollout.prompt.prompt_id for row in rows
    )
    # The next good batch trains as if nothing had happened.
    metrics = learner.update(rows, plan_of(rows, minibatches=1), 0.0)
    assert metrics["skipped_steps"] == 0
    assert math.isfinite(metrics["grad_norm"])
    fresh = make_policy(zero={"stage": stage})
    fresh.engine.num_steps = 1
    fresh.update(rows, plan_of(rows, minibatches=1), 0.0)
    wanted = learner_weights(fresh)
    for name, weight in learner_weights(learner).items():
        torch.testing.assert_close(weight, wanted[name], atol=1e-6, rtol=1e-5)


def learner_weights(learner):
    from rlhf_ray.learner.weights import named_weights

    return {name: weight.clone() for name, weight in named_weights(learner.lm)}


def test_only_the_bad_minibatch_is_skipped(make_policy, rows, tmp_path):
    learner = make_policy()
    before = parameters_of(learner)
    metrics = learner.update(spoiled(rows), plan_of(rows, minibatches=3), 0.0)
    assert metrics["skipped_steps"] == metrics["skipped_in_a_row"] == 1
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    after = parameters_of(learner)
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)
    [written] = (tmp_path / "skipped").iterdir()
    assert rows[0].rollout.prompt.prompt_id in {
        row.rollout.prompt.prompt_id for row in pickle.loads(written.read_bytes())
    }


def test_skipped_steps_are_counted_in_a_row_over_updates_and_checkpoints(
    make_policy, rows, tmp_path
):
    learner = make_policy()
    bad = [row for good in rows for row in spoiled([good])]

    def in_a_row(learner, rows):
        return learner.update(rows, plan_of(rows, minibatches=3), 0.0)["skipped_in_a_row"]

    assert in_a_row(learner, bad) == 3
    learner.save(tmp_path / "saved")
    assert in_a_row(learner, bad) == 6
    learner.load(tmp_path / "saved")
    assert in_a_row(learner, rows) == 0
    assert in_a_row(learner, bad) == 3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("optim", [{"lr": 1e-2}, {"lr": 5e-7, "warmup_steps": 50}])
def test_a_parameter_that_no_gradient_reaches_stops_the_run(make_policy, rows, stage, optim):
    learner = make_policy(zero={"stage": stage}, optim=optim)
    still = "lm.model.layers.1.mlp.up_proj.weight"
    dict(learner.engine.module.named_parameters())[still].register_hook(torch.zeros_like)
    with pytest.raises(RunError) as caught:
        for _ in range(5):
            learner.update(rows, plan_of(rows), 0.0)
    assert str(caught.value) == (
        f"1 parameters should train and have not moved in 3 optimiser steps: {still}"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_rates_that_are_too_small_to_move_a_weight_of_1_do_not_stop_the_run(
    make_policy, rows, stage
):
    """The first steps of a long warm-up to a small rate; the scales of norms start at 1."""
    learner = make_policy(zero={"stage": stage}, optim={"lr": 5e-7, "warmup_steps": 50})
    norm = dict(learner.engine.module.named_parameters())["lm.model.norm.weight"]
    for _ in range(3):
        assert learner.update(rows, plan_of(rows, minibatches=1), 0.0)["lr"] < 3e-8
    if stage == 0:
        assert norm.detach().eq(1).all(), "it could not move yet"


def test_no_gradient_at_all_is_no_reason_to_stop(make_policy, rows):
    learner = make_policy()
    flat = [replace(row, advantages_T=np.zeros_like(row.advantages_T)) for row in rows]
    for _ in range(4):
        metrics = learner.update(flat, plan_of(rows), 0.0)
        assert metrics["grad_norm"] == 0
    learner.update(rows, plan_of(rows), 0.0)


def test_gradients_are_clipped_to_the_norm_that_is_reported(make_policy, rows):
    """With Adam the clip cancels; so the gradient itself is looked at, before the step uses it."""
    norms = {}
    for stage in (0, 2):
        learner = make_policy(zero={"stage": stage}, optim={"max_grad_norm": 1e-3})
        norms[stage] = learner.update(rows, plan_of(rows, minibatches=1), 0.0)["grad_norm"]
        exp_avg = [s["exp_avg"] for s in learner.engine.engine.optimizer.state.values()]
        # Adam's first moment after one step: (1 - beta1) times the clipped gradient.
        clipped = math.sqrt(sum(float(m.double().square().sum()) for m in exp_avg)) / (1 - 0.9)
        assert clipped == pytest.approx(1e-3, rel=1e-2)
    assert norms[0] == pytest.approx(norms[2], rel=1e-4)
    assert norms[0] > 0.01


def test_the_rate_of_each_optimiser_step_follows_the_schedule(make_policy, rows):
    learner = make_policy(optim={"lr": 1e-2, "warmup_steps": 3, "schedule": "linear"})
    rates = [learner.update(rows, plan_of(rows, minibatches=1), 0.0)["lr"] for _ in range(6)]
    assert rates[:3] == pytest.approx([0.0025, 0.005, 0.0075])
    assert rates[3] == pytest.approx(0.01)
    assert rates[3] > rates[4] > rates[5] > 0


def test_a_restored_learner_goes_on_bit_for_bit(make_policy, rows, tmp_path):
    learner = make_policy(optim={"schedule": "cosine"})
    learner.update(rows, plan_of(rows), 0.1)
    learner.save(tmp_path / "saved")
    torch.rand(3)  # random numbers are part of the state
    learner.update(rows, plan_of(rows), 0.1)
    drawn = None
    wanted = parameters_of(learner)

    other = make_policy(optim={"schedule": "cosine"})
    other.load(tmp_path / "saved")
    assert other.engine.num_steps == 2
    drawn = torch.rand(3)
    other.load(tmp_path / "saved")
    assert torch.equal(torch.rand(3), drawn)
    other.update(rows, plan_of(rows), 0.1)
    for name, weight in parameters_of(other).items():
        assert torch.equal(weight, wanted[name]), name


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_learner_that_was_saved_before_its_first_step_starts_from_there(
    make_policy, rows, tmp_path, stage, dtype
):
    """While the critic warms up, checkpoints hold a policy that took no step."""
    settings = {"optim": {"warmup_steps": 3}, "zero": {"stage": stage}, "model": {"dtype": dtype}}
    learner = make_policy(**settings)
    start = learner_weights(learner)
    learner.save(tmp_path / "saved")
    rate = learner.update(rows, plan_of(rows), 0.1)["lr"]
    wanted = learner_weights(learner)

    other = make_policy(**settings)
    other.update(rows, plan_of(rows), 0.1)  # what it knows now must go
    other.load(tmp_path / "saved")
    assert other.engine.num_steps == 0
    for name, weight in learner_weights(other).items():
        assert torch.equal(weight, start[name]), name
    assert other.update(rows, plan_of(rows), 0.1)["lr"] == rate
    for name, weight in learner_weights(other).items():
        assert torch.equal(weight, wanted[name]), name
        assert not torch.equal(weight, start[name]), name


def test_a_folder_without_a_checkpoint_is_said(make_policy, tmp_path):
    with pytest.raises(ValueError, match="no DeepSpeed checkpoint in"):
        make_policy().load(tmp_path / "nothing")


def test_log_probabilities_can_be_asked_for_at_another_temperature(make_policy, rows):
    learner = make_policy()
    usual, again = (np.concatenate(logprobs_of(learner, rows)) for _ in range(2))
    hot = np.concatenate(logprobs_of(learner, rows, temperature=2.0))
    np.testing.assert_array_equal(usual, again)
    assert np.abs(hot - usual).max() > 0.1


def test_the_weighted_kl_starts_from_the_engines_policy(make_policy, rows):
    """Its weight is that of the correction times the ratio to the step's start."""
    rows = [
        replace(
            row,
            rollout=replace(row.rollout, logprobs_T=row.old_logprobs_T),
            advantages_T=np.zeros_like(row.advantages_T),
        )
        for row in rows
    ]
    twice = [
        replace(row, rollout=replace(row.rollout, logprobs_T=row.rollout.logprobs_T - np.log(2)))
        for row in rows
    ]
    algorithm = {
        "kl": {"coefficient": 0.1, "importance_weight": True},
        "correction": {"cap": 3.0},
    }
    gradients = []
    for given in (twice, rows):
        learner = make_policy(algorithm=algorithm, optim={"max_grad_norm": 1e6})
        learner.update(given, plan_of(given, minibatches=1), 0.1)
        gradients.append(gradients_of(learner))
    doubled = {name: 2 * gradient for name, gradient in gradients[1].items()}
    assert largest_gap(gradients[0], doubled) < 1e-5


def test_the_critic_also_values_the_state_after_the_last_token(make_value, rows):
    """What it says there is what it says before a token that follows."""
    learner = make_value()
    rollouts = [row.rollout for row in rows]
    longer = [
        replace(
            rollout,
            response_ids_T=np.append(rollout.response_ids_T, np.int32(5)),
            logprobs_T=np.append(rollout.logprobs_T, np.float32(0)),
            versions_T=np.append(rollout.versions_T, np.int32(0)),
            action_mask_T=np.append(rollout.action_mask_T, True),
        )
        for rollout in rollouts
    ]

    def values_of(rollouts):
        lens = [rollout.num_tokens for rollout in rollouts]
        plan = plan_forward(lens, data_parallel_size=1, max_tokens_per_micro_batch=60, padded=False)
        order = [row for micro_batch in plan[0] for row in micro_batch]
        return dict(zip(order, learner.values(rollouts, plan), strict=True))

    values, of_longer = values_of(rollouts), values_of(longer)
    for row, rollout in enumerate(rollouts):
        assert len(values[row]) == len(rollout.response_ids_T) + 1
        np.testing.assert_allclose(values[row], of_longer[row][:-1], atol=1e-5)
