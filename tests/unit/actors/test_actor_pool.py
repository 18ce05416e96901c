"""What a pool has its roles do around a job: the actors only write down what they are asked."""

from __future__ import annotations

from typing import Any

import pytest

from actors.pool import Pool
from rlhf_ray.config.base import GroupConfig, JobConfig, TimeoutConfig


class Actors:
    """A role of two ranks."""

    def __init__(self, role: str, asked: list[tuple[Any, ...]]) -> None:
        self.role, self.asked = role, asked

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> list[Any]:
        self.asked.append((self.role, method, *arguments))
        return [[f"{self.role}{rank}"] for rank in range(2)]


@pytest.fixture
def asked() -> list[tuple[Any, ...]]:
    return []


@pytest.fixture
def pool(asked) -> Pool:
    """Policy, reward and engines on one group's GPUs; the reference on its own."""
    pool = Pool("pool", TimeoutConfig())
    shared = GroupConfig(gpus_per_rank=1, share="policy")
    pool.state.groups = {
        "policy": GroupConfig(gpus_per_rank=1),
        "reference": GroupConfig(gpus_per_rank=1),
        "reward": shared,
        "rollout": shared,
    }
    for role in pool.state.groups:
        pool.state.sets[role] = Actors(role, asked)
    return pool


def job(folder: str, *, export: bool = True) -> JobConfig:
    return JobConfig.model_validate({"run_dir": folder, "checkpoint": {"export": export}})


async def test_what_a_job_does_not_use_leaves_its_gpus(pool, asked):
    await pool.load("reward", "spec", path="rm")
    await pool.load("reference", "spec", path="base")
    asked.clear()
    await pool.make_room(["policy"])
    assert asked == [("reward", "unload"), ("rollout", "sleep")]
    await pool.make_room(["policy"])
    assert asked[2:] == [("rollout", "sleep")], "a role without a model has nothing to release"


async def test_nobody_has_to_leave_a_group_of_its_own(pool, asked):
    await pool.load("policy", "spec", path="base")
    asked.clear()
    await pool.make_room(["reference"])
    assert asked == []


async def test_a_result_that_nobody_wants_is_only_written(pool, asked):
    await pool.finish(job("runs/a"), "policy", "tokenizer")
    assert asked == [("policy", "export", "runs/a/export", "tokenizer")]
    assert not pool.state.models


async def test_a_wanted_result_is_loaded_from_memory_until_it_is_no_longer_wanted(pool, asked):
    await pool.want(["runs/a/export"])
    await pool.finish(job("runs/a", export=False), "policy", "tokenizer")
    assert [call[1] for call in asked] == ["describe", "keep"]
    held = pool.state.models["runs/a/export"]
    assert held.bucket_refs == ("policy0", "policy1")

    await pool.load("reference", "spec", path="runs/a/export")
    assert asked[-1] == ("reference", "load", "spec", [held])
    await pool.load("reference", "spec", path="elsewhere")
    assert asked[-1] == ("reference", "load", "spec", [])

    await pool.want(["runs/b/export"])
    assert asked[-1] == ("policy", "drop", "runs/a/export")
    assert not pool.state.models


async def test_jobs_of_a_role_each_keep_what_another_still_wants(pool):
    await pool.want(["runs/a/export", "runs/b/export"])
    for folder in ("runs/a", "runs/b"):
        await pool.finish(job(folder), "policy", "tokenizer")
    assert list(pool.state.models) == ["runs/a/export", "runs/b/export"]
