"""Several replicas answer as one: rows in the order that they were asked for."""

from __future__ import annotations

import asyncio

import pytest
import ray

from actors.cluster.role import RoleHandle
from actors.engines.ending import Ending
from actors.engines.replica_set import ReplicaSet
from actors.ranks.rank import collect
from rlhf_ray.errors import RunError
from rlhf_ray.roles import GenerationRequest
from rlhf_ray.types import Prompt, RolloutSummary


@pytest.fixture(scope="module")
def replica_class(cluster):
    @ray.remote(num_cpus=0)
    class Replica:
        """Says of every sample which replica drew it; the first replica is the slower one."""

        def __init__(self, number):
            self.number, self.sleeps = number, False

        async def sleep(self, level, timeout_s):
            self.sleeps = True

        async def wake_up(self, part, timeout_s):
            self.sleeps = False

        async def generate(self, requests, ending, timeout_s):
            assert not self.sleeps
            assert (ending.stop, timeout_s) == ((".",), 60.0)
            if any(request.prompt.prompt_id == "bad" for request in requests):
                raise LookupError("no such prompt")
            await asyncio.sleep(0.5 * (1 - self.number))
            drawn = [
                (request.prompt.prompt_id, sample, seed, self.number)
                for request in requests
                for sample, seed in enumerate(request.seeds_G)
            ]
            summaries = [
                RolloutSummary(
                    prompt_id=prompt_id,
                    draw=0,
                    sample=sample,
                    num_prompt_tokens=1,
                    num_response_tokens=1,
                    num_own_tokens=1,
                    finish_reason="stop",
                    version_min=0,
                    version_max=0,
                    version_sum=0,
                )
                for prompt_id, sample, _, _ in drawn
            ]
            return summaries, drawn

    return Replica


@pytest.fixture
def replicas(replica_class):
    actors = [replica_class.remote(number) for number in range(2)]
    named = {f"job/rollout/{number}": actor for number, actor in enumerate(actors)}
    ending = Ending(stop=(".",))
    yield ReplicaSet(RoleHandle("rollout", named), ending, timeout_s=60.0, sleeps=False)
    for actor in actors:
        ray.kill(actor)


async def test_requests_wake_replicas_that_sleep_on_a_shared_gpu(replicas):
    shared = ReplicaSet(replicas.actors, replicas.ending, timeout_s=60.0, sleeps=True)
    await shared.sleep(level=1)
    batch = await shared.generate([request("a", 1, [1, 2]), request("b", 1, [3])])
    assert [summary.prompt_id for summary in batch.summaries_B] == ["a", "a", "b"]


def request(prompt_id, num_tokens, seeds):
    prompt = Prompt(prompt_id=prompt_id, token_ids_T=(1,) * num_tokens, text="")
    return GenerationRequest(
        prompt=prompt, draw=0, seeds_G=tuple(seeds), temperature=1.0, max_new_tokens=10
    )


# Costs are (tokens + 10) x samples: 60, 22, 12, 15, so that replica 1 gets all but the first.
REQUESTS = [
    request("long", 10, (7, 8, 9)),
    request("a", 1, (4, 5)),
    request("b", 2, (6,)),
    request("long", 5, (3,)),
]
ROWS = [
    ("long", 0, 7), ("long", 1, 8), ("long", 2, 9), ("a", 0, 4), ("a", 1, 5), ("b", 0, 6),
    ("long", 0, 3),
]  # fmt: skip


async def test_rows_come_in_the_order_of_requests_then_samples(replicas):
    backwards = [ROWS[row] for row in (6, 5, 3, 4, 0, 1, 2)]
    for requests, expected in ((REQUESTS, ROWS), (REQUESTS[::-1], backwards)):
        batch = await replicas.generate(requests)
        rollouts = collect(batch.shards, len(batch.summaries_B), timeout_s=30)
        assert [(prompt_id, sample, seed) for prompt_id, sample, seed, _ in rollouts] == expected
        told = [(summary.prompt_id, summary.sample) for summary in batch.summaries_B]
        assert told == [(prompt_id, sample) for prompt_id, sample, _ in expected]
        assert {replica for *_, replica in rollouts} == {0, 1}


async def test_one_request_asks_one_replica(replicas):
    batch = await replicas.generate(REQUESTS[:1])
    assert [shard.rows for shard in batch.shards] == [(0, 1, 2)]


async def test_a_replica_that_failed_is_named_and_counts_as_idle_again(replicas):
    with pytest.raises(RunError, match=r"rollout.generate: job/rollout/1 failed .* no such prompt"):
        await replicas.generate([*REQUESTS[:1], request("bad", 1, (1,))])
    batch = await replicas.generate(REQUESTS)
    # As if nothing had been: the first request goes to the first replica again.
    assert [shard.rows for shard in batch.shards] == [(0, 1, 2), (3, 4, 5, 6)]
