"""The same three PPO steps on any number of ranks, ZeRO stage, layout and placement.

Policy, critic, reference, reward and publication are real. Every variant is given the rollouts that
the first one sampled, so that what differs is the variant alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from jobs import TWO_RANKS_SHARED, largest_difference, on_ranks, run_loop, weights_of
from safetensors.numpy import load_file

from rlhf_ray.loops.publication import publish

VARIANTS = [
    (ranks, stage, layout)
    for ranks in (1, 2)
    for stage in (0, 2, 3)
    for layout in ("packed", "padded")
]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Three steps: weights of both trained roles before and after, and metrics."""

    before: dict[str, Any]
    policy: dict[str, Any]
    value: dict[str, Any]
    steps: list[dict[str, float]]


def run_variant(config, pool, tape, *, moves=False):
    roles, steps = run_loop(config, pool, tape, moves=moves)
    gap = asyncio.run(publish(roles, config.total_steps + 1)).logprob_abs_max
    for role in (roles.policy, roles.value):
        on_ranks(role.actors, lambda rank: rank.residency.reload())
    return weights_of(roles.policy.actors), weights_of(roles.value.actors), steps, gap


def settings_of(ranks, stage, layout):
    # An eps of a gradient's size: with a smaller one, rounding of a gradient near 0 becomes a whole
    # step of Adam's, and variants part on one processor or another.
    learner = {"zero": {"stage": stage}, "layout": layout, "optim": {"eps": 1e-3}}
    settings: dict[str, Any] = {"policy": learner, "value": learner}
    if ranks == 2:
        settings["placement"] = TWO_RANKS_SHARED
    return settings


@pytest.fixture(scope="module")
def tape():
    return {}


@pytest.fixture(scope="module")
def baseline(pool, make_config, tape, tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("run"), **settings_of(1, 0, "packed"))
    policy, value, steps, _ = run_variant(config, pool, tape)
    before = load_file(f"{config.policy.model.path}/model.safetensors")
    return Trained(before=before, policy=policy, value=value, steps=steps)


def test_a_weight_that_is_no_number_is_the_largest_difference():
    right = {"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}
    wrong = {**right, "a": np.full(2, 1.1), "b": np.array([1.0, np.nan])}
    gap, name = largest_difference(wrong, right)
    assert np.isnan(gap) and name == "b"
    assert not largest_difference(wrong, right) < (1e-4, "")


def test_three_steps_change_the_weights_by_much_more_than_the_tolerance(baseline):
    before = {name: baseline.before[name] for name in baseline.policy}
    moved, _ = largest_difference(baseline.policy, before)
    assert moved > 1e-2


@pytest.mark.parametrize(("ranks", "stage", "layout"), VARIANTS)
def test_every_variant_reaches_the_same_weights(
    ranks, stage, layout, baseline, pool, shared_pool, make_config, tape, tmp_path
):
    config = make_config(tmp_path, **settings_of(ranks, stage, layout))
    num_recorded = len(tape)
    job_pool = pool if ranks == 1 else shared_pool
    policy, value, steps, gap = run_variant(config, job_pool, tape)
    assert len(tape) == num_recorded == 3, "a variant was given other rollouts"
    assert largest_difference(policy, baseline.policy) < (1e-5, "")
    assert largest_difference(value, baseline.value) < (1e-5, "")
    ours, theirs = ([step["policy/grad_norm"] for step in s] for s in (steps, baseline.steps))
    assert ours == pytest.approx(theirs, rel=1e-3)
    # Published, they answer like the trained ones, whatever held them.
    assert gap < 1e-4


def test_roles_that_leave_each_other_their_place_take_the_same_steps(
    pool, shared_pool, make_config, tape, baseline, tmp_path_factory
):
    """Of what engines do on a GPU only the calls can be had here: a CPU's do not sleep."""
    settings = settings_of(2, 3, "packed")
    # Spread, for a CPU's own weights stay in their mapped file.
    settings["reference"] = {"zero": {"stage": 3}}
    found = []
    for moves in (False, True):
        config = make_config(tmp_path_factory.mktemp("run"), **settings)
        *weights, steps, gap = run_variant(config, shared_pool, tape, moves=moves)
        usage = asyncio.run(shared_pool.usage(["policy", "value", "reference"])).metrics
        assert (usage.get("time/offload", 0) > 0) is (usage.get("time/reload", 0) > 0) is moves
        assert gap < 1e-4
        found.append((weights, [step["policy/loss"] for step in steps]))
    (stayed, losses), (moved, losses_of_moved) = found
    for ours, theirs in zip(moved, stayed, strict=True):
        assert largest_difference(ours, theirs)[0] == 0.0
    assert losses_of_moved == losses
