"""Log-probabilities at the start of a step: by a pass, by the update's own pass, by the engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from learning import gradients_of, largest_gap, logprobs_of, plan_of

from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES

UNCLIPPED = {"max_grad_norm": 1e9}
KL = {"coefficient": 0.1, "where": "loss"}


@pytest.fixture
def scored(make_policy, rows):
    """Rows with the policy's own log-probabilities, sampled by an engine that is off by 0.3."""
    learner = make_policy()
    noise = np.random.default_rng(7)
    return [
        replace(
            row,
            old_logprobs_T=logprobs_T,
            rollout=replace(
                row.rollout,
                logprobs_T=logprobs_T + noise.normal(0, 0.3, len(logprobs_T)).astype(np.float32),
            ),
        )
        for row, logprobs_T in zip(rows, logprobs_of(learner, rows), strict=True)
    ]


def without_pass(rows):
    """As experience is built where no pass was made."""
    return [replace(row, old_logprobs_T=np.zeros_like(row.old_logprobs_T)) for row in rows]


def updated(make_policy, rows, *, algorithm, **settings):
    learner = make_policy(optim=UNCLIPPED, algorithm=algorithm, **settings)
    kl_coefficient = algorithm.get("kl", {}).get("coefficient", 0.0)
    metrics = learner.update(rows, plan_of(rows, minibatches=1), kl_coefficient)
    return gradients_of(learner), metrics


@pytest.mark.parametrize("kind", ["none", "truncated", "mask"])
@pytest.mark.parametrize("loss", list(POLICY_LOSSES))
def test_the_updates_own_pass_gives_the_gradient_of_a_pass_before(make_policy, scored, loss, kind):
    algorithm = {
        "policy_loss": loss,
        "entropy_coefficient": 0.01,
        "kl": {**KL, "importance_weight": True},
        "correction": {"kind": kind},
    }
    wanted, said = updated(make_policy, scored, algorithm=algorithm)
    ours, metrics = updated(
        make_policy, without_pass(scored), algorithm=algorithm, old_logprobs="update"
    )
    assert largest_gap(ours, wanted) < 1e-6
    assert metrics == pytest.approx(said, rel=1e-5, abs=1e-6)
    assert metrics["ratio_mean"] == 1.0
    assert metrics["mismatch/logprob_abs_max"] > 0.3


@pytest.mark.parametrize("loss", list(POLICY_LOSSES))
def test_an_engine_that_agrees_gives_the_gradient_of_a_pass(make_policy, scored, loss):
    agreed = [
        replace(row, rollout=replace(row.rollout, logprobs_T=row.old_logprobs_T)) for row in scored
    ]
    algorithm = {"policy_loss": loss, "kl": KL}
    wanted, _ = updated(make_policy, agreed, algorithm=algorithm)
    ours, metrics = updated(
        make_policy, without_pass(agreed), algorithm=algorithm, old_logprobs="engine"
    )
    assert largest_gap(ours, wanted) < 1e-6
    assert metrics["mismatch/logprob_abs_max"] < 1e-5


def test_an_engine_is_compared_where_the_policy_is_still_the_published_one(make_policy, scored):
    """In the first of three optimiser steps; later ones differ by what was learnt."""
    plan = plan_of(scored, minibatches=3)
    [first] = plan.minibatches[0].micro_batches_by_rank
    picked = [scored[row] for rows in first for row in rows]
    gaps_T = np.concatenate(
        [(row.rollout.logprobs_T - row.old_logprobs_T)[row.rollout.action_mask_T] for row in picked]
    )
    learner = make_policy(old_logprobs="engine")
    first, second = (learner.update(without_pass(scored), plan, 0.0) for _ in range(2))
    assert first["mismatch/logprob_abs_max"] == pytest.approx(np.abs(gaps_T).max())
    mean = np.abs(gaps_T).mean()
    assert first["mismatch/logprob_abs_mean"] == pytest.approx(mean, rel=1e-4)
    assert second["mismatch/logprob_abs_mean"] > 2 * mean  # it has learnt three times by then
    assert (first["mismatch/ess"], first["mismatch/cut_share"]) == (1.0, 0.0)


def test_weights_correct_for_what_sampled(make_policy, rows):
    """Twice the ratio to the engine is twice the gradient, up to the bound."""

    def gradient(gap, **correction):
        sampled = [
            replace(row, rollout=replace(row.rollout, logprobs_T=row.old_logprobs_T - gap))
            for row in rows
        ]
        return updated(make_policy, sampled, algorithm={"correction": correction})

    plain, _ = gradient(np.float32(0.0))
    for gap, bounds, factor, cut_share in [
        (np.log(1.5), {"cap": 2.0}, 1.5, 0.0),
        (np.log(3.0), {"cap": 2.0}, 2.0, 1.0),
        (np.log(3.0), {"kind": "none"}, 1.0, 0.0),
        (np.log(3.0), {"kind": "mask", "cap": 2.0}, 0.0, 1.0),
    ]:
        weighted, metrics = gradient(np.float32(gap), **bounds)
        wanted = {name: factor * gradient for name, gradient in plain.items()}
        if factor:
            assert largest_gap(weighted, wanted) < 1e-5
        else:
            assert not any(gradient.any() for gradient in weighted.values())
        assert metrics["mismatch/cut_share"] == cut_share
        assert metrics["mismatch/logprob_abs_mean"] == pytest.approx(gap, rel=1e-4)


def test_a_policy_without_its_adapter_is_scored_beside_it(make_policy, rows):
    learner = make_policy(model={"lora": {"rank": 3, "alpha": 12.0}})
    rollouts = [row.rollout for row in rows]
    [passes] = plan_of(rows, minibatches=1).minibatches
    plan = passes.micro_batches_by_rank
    started = learner.logprobs(rollouts, plan)
    for _ in range(3):
        learner.update(rows, plan_of(rows), 0.0)
    own, base = learner.logprobs_of(rollouts, plan, ["policy", "base"])
    [alone] = learner.logprobs_of(rollouts, plan, ["base"])
    for ours, theirs in ((own, learner.logprobs(rollouts, plan)), (base, started), (alone, base)):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert np.abs(np.concatenate(own) - np.concatenate(base)).max() > 1e-2
    assert all(p.requires_grad == ("lora_" in n) for n, p in learner.lm.named_parameters())
