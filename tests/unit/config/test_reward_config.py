"""Rewards that are here have names, and workers are as many as GPUs unless somebody says so."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rlhf_ray.config.checks.references import function_fault
from rlhf_ray.config.online import GrpoConfig
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.rewards import READY, RewardFunctionConfig


@pytest.mark.parametrize("name", READY)
def test_a_name_stands_for_a_function_that_is_there(name: str) -> None:
    path = RewardFunctionConfig(path=name).path
    assert path == READY[name]
    assert function_fault(path) is None


def test_another_name_is_refused_with_those_there_are() -> None:
    message = r"must be package.module:function, file.py:function or one of .*math_verify.*, got 'm"
    with pytest.raises(ValidationError, match=message):
        RewardFunctionConfig(path="math_verifier")
    assert RewardFunctionConfig(path="mine.py:math_verify").path == "mine.py:math_verify"


@pytest.mark.parametrize(
    ("placement", "ranks"),
    [
        ({}, 1),
        ({"policy": {"ranks": 4, "gpus_per_rank": 1}, "rollout": {"share": "policy"}}, 4),
        ({"policy": {"gpus_per_rank": 1}, "rollout": {"ranks": 2, "gpus_per_rank": 2}}, 5),
        ({"policy": {"ranks": 64, "gpus_per_rank": 1}}, 8),
        ({"policy": {"ranks": 64, "gpus_per_rank": 1}, "reward_worker": {"ranks": 2}}, 2),
    ],
)
def test_there_is_a_worker_for_each_gpu(placement: dict[str, Any], ranks: int) -> None:
    group = PlacementConfig.model_validate(placement).reward_worker
    assert (group.ranks, group.reserved_cpus) == (ranks, 1.0)


def test_workers_have_no_gpus() -> None:
    with pytest.raises(ValidationError, match=r"reward_worker.gpus_per_rank must be 0, got 1"):
        PlacementConfig.model_validate({"reward_worker": {"gpus_per_rank": 1}})


@pytest.mark.parametrize(
    ("reward", "roles"),
    [
        ({"functions": [{"path": "gsm8k"}]}, {"reward_worker"}),
        ({"judge": {"url": "http://x/v1", "model": "m"}}, {"reward_worker"}),
        ({"model": {"path": "rm"}}, {"reward"}),
        ({"model": {"path": "rm"}, "remote": {"url": "http://x"}}, {"reward", "reward_worker"}),
    ],
)
def test_a_job_has_the_roles_that_score(reward: dict[str, Any], roles: set[str]) -> None:
    config = GrpoConfig.model_validate(
        {"data": {"path": "x"}, "policy": {"model": {"path": "m"}}, "reward": reward}
    )
    assert {"reward", "reward_worker"} & config.groups.keys() == roles
