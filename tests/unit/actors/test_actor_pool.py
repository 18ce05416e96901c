"""What a pool has its roles do around a job: the actors only write down what they are asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from actors.pool.placement import Slot
from actors.pool.pool import Pool
from rlhf_ray.config.base import GroupConfig, TimeoutConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.errors import RunError


class Actors:
    """A role of two ranks; `answers` says what they answer to some methods, or that they fail."""

    actors = ()  # whom Ray would have to kill

    def __init__(self, role: str, asked: list[tuple[Any, ...]]) -> None:
        self.role, self.asked = role, asked
        self.answers: dict[str, Any] = {"health": [health(), health()]}

    @asynccontextmanager
    async def turn(self, *, timeout_s: float) -> AsyncIterator[None]:
        yield

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> list[Any]:
        self.asked.append((self.role, method, *arguments))
        answer = self.answers.get(method, [[f"{self.role}{rank}"] for rank in range(2)])
        if isinstance(answer, Exception):
            raise answer
        return answer

    compute = call


def health(*, alive: bool = True, updating: bool = False) -> dict[str, Any]:
    """What an engine's actor says of it."""
    return {"name": "pool/rollout/0", "version": 3, "alive": alive, "updating": updating}


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
    slot = Slot(group=None, bundle=0, node_id="node", address="10.0.0.1")
    pool.state.slots = {"policy": [slot], "reference": [slot]}
    for role in pool.state.groups:
        pool.state.sets[role] = Actors(role, asked)
    pool.state.specs["rollout"] = SimpleNamespace(sleeps=True)
    return pool


def job(folder: str, *, export: str = "end") -> JobConfig:
    return JobConfig.model_validate({"run_dir": folder, "checkpoint": {"export": export}})


async def test_what_a_job_does_not_use_leaves_its_gpus(pool, asked):
    await pool.load("reward", "spec", path="rm")
    await pool.load("reference", "spec", path="base")
    asked.clear()
    await pool.make_room(["policy"])
    asleep = ("rollout", "sleep", 2, pool.timeouts.call_s)
    assert asked == [("reward", "unload"), asleep]
    await pool.make_room(["policy"])
    assert asked[2:] == [asleep], "a role without a model has nothing to release"


async def test_what_a_job_before_left_on_shared_gpus_is_not_there_while_models_load(pool, asked):
    for role in ("policy", "reward", "reference"):
        await pool.load(role, "spec", path="base")
    asked.clear()
    await pool.make_room(["policy", "reward", "rollout", "reference"])
    assert asked == [("policy", "unload"), ("reward", "unload")], "the reference is by itself"


async def test_engines_that_cannot_sleep_end(pool, asked):
    """A GRPO job without a reference shares its GPUs with nobody; then DPO wants them for one."""
    pool.state.specs["rollout"] = SimpleNamespace(sleeps=False)
    await pool.make_room(["policy"])
    assert asked == [("rollout", "stop")]
    assert "rollout" not in pool.state.sets


async def test_engines_on_cpus_are_left_alone(pool, asked):
    pool.state.groups["rollout"] = GroupConfig(share="policy")
    await pool.make_room(["policy"])
    assert asked == []


async def test_a_model_on_the_engines_gpus_goes_on_to_the_host(pool, asked):
    await pool.load("policy", "spec", path="base", leaves=True)
    await pool.load("reference", "spec", path="base")
    assert asked == [
        ("policy", "load", "spec", []), ("policy", "offload"), ("reference", "load", "spec", [])
    ]  # fmt: skip


async def test_an_engine_starts_on_gpus_that_models_have_left(pool, asked, monkeypatch):
    """Those of a job before, which their ranks hold still."""
    for role in ("policy", "reference"):
        await pool.load(role, "spec", path="base")
    asked.clear()

    def start(role, actor_class, spec):
        asked.append((role, "started"))
        return Actors(role, asked)

    monkeypatch.setattr(pool, "_start", start)
    del pool.state.sets["rollout"]
    await pool.replica_set("rollout", None, "engine")
    assert asked == [("policy", "offload"), ("rollout", "started"), ("rollout", "start")]


async def test_nobody_has_to_leave_a_group_of_its_own(pool, asked):
    await pool.load("policy", "spec", path="base")
    asked.clear()
    await pool.make_room(["reference"])
    assert asked == []


async def test_roles_compute_in_turn_where_they_live_on_the_same_gpus(pool):
    policy, reward, reference = [
        await pool.rank_group(role, None) for role in ("policy", "reward", "reference")
    ]
    assert policy.gpu_turns is reward.gpu_turns is not None
    assert reference.gpu_turns is None


@pytest.mark.parametrize("gpus", [0, 1])
async def test_a_guest_on_a_cpu_takes_no_turns(pool, gpus):
    shared = GroupConfig(share="policy")
    pool.state.groups = {"policy": GroupConfig(gpus_per_rank=gpus), "reward": shared}
    assert (await pool.rank_group("policy", None)).gpu_turns is None
    assert (await pool.rank_group("reward", None)).gpu_turns is None


async def test_a_result_that_nobody_wants_is_only_written(pool, asked):
    await pool.finish(job("runs/a"), "policy", "tokenizer")
    assert asked == [("policy", "export", "runs/a/export", "tokenizer")]
    assert not pool.state.models


async def test_a_wanted_result_is_loaded_from_memory_until_it_is_no_longer_wanted(pool, asked):
    await pool.want(["runs/a/export"])
    await pool.finish(job("runs/a", export="never"), "policy", "tokenizer")
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


async def test_a_pool_that_is_well_keeps_its_actors(pool, asked):
    before = dict(pool.state.sets)
    await pool.heal()
    assert pool.state.sets == before
    assert ("rollout", "health") in asked
    assert not [call for call in asked if call[1] == "stop"]


@pytest.mark.parametrize(
    "sick", [health(updating=True), health(alive=False)], ids=["amid a publication", "dead"]
)
async def test_engines_that_cannot_serve_are_ended_although_their_actors_answer(
    pool, asked, caplog, sick
):
    pool.state.sets["rollout"].answers["health"] = [health(), sick]
    await pool.heal()
    assert set(pool.state.sets) == {"policy", "reference", "reward"}
    assert [call for call in asked if call[1] == "stop"] == [("rollout", "stop")]
    assert "rollout is started anew" in caplog.text


async def test_engines_that_were_ended_are_started_again_with_the_same_specification(
    pool, monkeypatch
):
    pool.state.specs["rollout"] = "spec"
    pool.state.sets["rollout"].answers["health"] = [health(updating=True), health()]
    await pool.heal()
    started = Actors("rollout", [])
    monkeypatch.setattr(pool, "_start", lambda role, actor_class, argument: started)
    assert await pool.replica_set("rollout", None, "spec") is started
    assert started.asked == [("rollout", "start")]
    assert await pool.replica_set("rollout", None, "spec") is pool.state.sets["rollout"]


async def test_a_role_that_does_not_answer_is_ended_with_what_it_holds(pool):
    await pool.want(["runs/a/export"])
    await pool.finish(job("runs/a"), "policy", "tokenizer")
    pool.state.sets["policy"].answers["process_id"] = RunError("policy: no answer")
    pool.state.sets["policy"].answers["stop"] = RunError("policy: no answer")
    await pool.heal()
    assert "policy" not in pool.state.sets
    assert not pool.state.models
    assert "policy" not in pool.state.hosted
    assert "policy" in pool.state.groups, "its place stays reserved"
