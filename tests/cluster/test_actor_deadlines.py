"""Every wait on an actor ends, and its error names the actor, the operation and the age."""

from __future__ import annotations

import os
import time

import pytest
import ray

from actors.cluster.deadline import get
from actors.cluster.role_handle import RoleHandle
from actors.pool.pool import Pool
from actors.ranks.group import RankSpec
from actors.ranks.reward import RewardRank
from actors.weights.replica_client import ReplicaClient
from actors.weights.sync_spec import SyncSpec
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import ActorDied, ConfigError, RunError


@pytest.fixture(scope="module")
def worker_class(cluster):
    return ray.remote(num_cpus=0)(Worker)


class Worker:
    def answer(self, value):
        return value

    def in_parts(self, value):
        return value, [value] * 3

    def sleep(self, seconds):
        time.sleep(seconds)

    def fail(self):
        raise LookupError("no such thing")

    def refuse(self):
        raise ConfigError("policy.model.path names nothing")

    def die(self):
        os._exit(1)

    def finish_weight_update(self, version, base):
        return version - 1


@pytest.fixture
def workers(worker_class):
    actors = [worker_class.remote() for _ in range(3)]
    yield RoleHandle("policy", {f"job/policy/{n}": actor for n, actor in enumerate(actors)})
    for actor in actors:
        ray.kill(actor)


async def test_answers_come_in_the_order_of_actors(workers):
    refs = [actor.answer.remote(n) for n, actor in enumerate(workers.actors)]
    assert ray.get(refs, timeout=60) == [0, 1, 2]
    assert await workers.call(Worker.answer, timeout_s=30)(7) == [7, 7, 7]


async def test_the_second_part_of_an_answer_stays_where_it_is(workers):
    [(first, second), *_] = await workers.call_in_parts(Worker.in_parts, timeout_s=30)(5)
    assert first == 5
    assert ray.get(second, timeout=60) == [5, 5, 5]


async def test_a_slow_actor_is_killed_and_named_with_operation_and_age(workers):
    await workers.call(Worker.answer, timeout_s=60)(0)
    workers.actors[1].sleep.remote(20)
    with pytest.raises(ActorDied) as caught:
        await workers.call(Worker.answer, timeout_s=2)(0)
    died = caught.value
    assert str(died) == (
        "policy.answer: no answer from job/policy/1 after 2 s (deadline 2 s): killed"
    )
    assert (died.role, died.index, died.operation) == ("policy", 1, "policy.answer")
    with pytest.raises(ActorDied, match="job/policy/1 died"):
        await workers.call(Worker.answer, timeout_s=30)(0)
    for rank in (0, 2):
        assert await workers.call(Worker.answer, only=rank, timeout_s=30)(3) == [3]


async def test_a_dead_actor_ends_the_wait_for_the_others(workers):
    await workers.call(Worker.answer, timeout_s=60)(0)
    workers.actors[0].sleep.remote(60)
    workers.actors[2].die.remote()
    started_s = time.monotonic()
    with pytest.raises(ActorDied, match=r"policy.answer: job/policy/2 died after \d+ s") as caught:
        await workers.call(Worker.answer, timeout_s=50)(0)
    died = caught.value
    assert (died.role, died.index, died.operation) == ("policy", 2, "policy.answer")
    assert time.monotonic() - started_s < 30


async def test_an_exception_is_named_with_its_cause(workers):
    with pytest.raises(RunError) as caught:
        await workers.call(Worker.fail, timeout_s=60)()
    assert str(caught.value).startswith("policy.fail: job/policy/")
    assert str(caught.value).endswith(" s: LookupError: no such thing")


async def test_an_error_in_words_for_the_user_keeps_them(workers):
    with pytest.raises(RunError, match=r"policy.refuse: job/policy/1: policy.model.path names"):
        await workers.call(Worker.refuse, only=1, timeout_s=60)()


def test_a_wait_outside_of_asyncio_has_the_same_errors(workers):
    quick, slow = workers.actors[1].answer.remote(3), workers.actors[0].sleep.remote(20)
    assert ray.get(quick, timeout=60) == 3  # on a busy machine also a quick answer takes seconds
    with pytest.raises(DeadlineError, match=r"load: no answer from a after 2 s"):
        get([quick, slow], timeout_s=2, actors=["b", "a"], operation="load")
    ray.cancel(slow)
    failing = workers.actors[1].fail.remote()
    with pytest.raises(RunError, match=r"load: b failed after \d+ s: LookupError: no such"):
        get([failing], timeout_s=60, actors=["b"], operation="load")


def test_a_replica_that_acknowledges_another_version_has_failed(workers):
    spec = SyncSpec(
        backend="object_store",
        gpus_per_replica=0,
        bucket_bytes=1,
        timeout_s=60.0,
    )
    replicas = RoleHandle("rollout", {"job/rollout/0": workers.actors[0]})
    client = ReplicaClient(spec, replicas)
    client.begin(4, replicas)
    client.finish_update()
    [why] = client.failed.values()
    assert why == "job/rollout/0 acknowledged version 3, wanted 4"


async def test_a_busy_cluster_is_not_waited_for_without_end(cluster):
    total = ray.cluster_resources()["CPU"]
    first, second = (Pool(name, TimeoutConfig(place_s=3.0)) for name in ("greedy", "patient"))
    first.place({"policy": GroupConfig(cpus_per_rank=1)})
    try:
        with pytest.raises(DeadlineError, match="placing policy: no room for its placement group"):
            second.place({"policy": GroupConfig(cpus_per_rank=total)})
    finally:
        await first.close()
    assert second.state.places == {}


async def test_a_cluster_that_is_too_small_is_said_before_anything_starts(cluster):
    pool = Pool("large", TimeoutConfig())
    with pytest.raises(ConfigError, match=r"5 GPU asked, 0 there"):
        pool.place({"policy": GroupConfig(ranks=5, gpus_per_rank=1)})
    assert pool.state.roles == {}


async def test_a_rank_tells_of_itself_while_it_computes(cluster):
    pool = Pool("health", TimeoutConfig(place_s=30, start_s=120))
    try:
        pool.place({"reward": GroupConfig()})
        ranks = await pool.start("reward", RankSpec(actor_class=RewardRank))
        assert await pool.start("reward", RankSpec(actor_class=RewardRank)) is ranks
        ranks.actors[0].__ray_call__.remote(lambda _: time.sleep(6))
        [usage] = await ranks.call(RewardRank.usage, timeout_s=4)()
        assert usage.figures["peak_gb"] > 0
        with pytest.raises(ActorDied, match="process_id: no answer"):
            await ranks.call(RewardRank.process_id, timeout_s=1)()
    finally:
        await pool.close()
    with pytest.raises(ValueError, match="health/reward/0"):
        ray.get_actor("health/reward/0")
