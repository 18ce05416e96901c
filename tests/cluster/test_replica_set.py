"""Several replicas answer as one: groups in the order that they were asked for."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import ray

from actors.cluster.role_handle import RoleHandle
from actors.engines.replica_set import ReplicaSet
from actors.engines.sampling import Ending
from rlhf_ray.errors import RunError
from rlhf_ray.roles import GenerationRequest
from rlhf_ray.rollouts.feed import sample_all
from rlhf_ray.types import Prompt, RolloutSummary


@pytest.fixture(scope="module")
def replica_class(cluster):
    @ray.remote(num_cpus=0)
    class Replica:
        """Says of every sample which replica drew it; the first replica is the slower one."""

        def __init__(self, number):
            self.number, self.sleeps, self.aborted = number, False, []

        async def sleep(self, level, timeout_s):
            self.sleeps = True

        async def wake_up(self, part, timeout_s):
            self.sleeps = False

        async def admit(self, requests, ending, timeout_s):
            assert not self.sleeps
            assert (ending.stop, timeout_s) == ((".",), 60.0)
            self.requests = {request.draw: request for request in requests}
            if any(request.prompt.prompt_id == "refused" for request in requests):
                raise LookupError("no such prompt")

        async def finished(self, draw):
            request = self.requests[draw]
            if request.prompt.prompt_id == "bad":
                raise LookupError("no such prompt")
            if request.prompt.prompt_id == "endless":
                await asyncio.sleep(600)
            await asyncio.sleep(0.5 * (1 - self.number))
            drawn = [
                (request.prompt.prompt_id, sample, seed, self.number)
                for sample, seed in enumerate(request.seeds_G)
            ]
            summaries = [
                RolloutSummary(
                    sample=sample,
                    num_prompt_tokens=1,
                    num_response_tokens=1,
                    num_action_tokens=1,
                    finish_reason="stop",
                    version_min=0,
                    version_max=0,
                    version_sum=0,
                )
                for _, sample, _, _ in drawn
            ]
            return summaries, drawn

        async def abort(self, draws):
            self.aborted += draws

        async def told_to_abort(self):
            return self.aborted

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
    groups = await sample_all(shared, [request("a", 1, [1, 2]), request("b", 1, [3])])
    assert [(group.prompt.prompt_id, len(group.summaries_G)) for group in groups] == [
        ("a", 2), ("b", 1)
    ]  # fmt: skip


NEXT_DRAW = itertools.count()


def request(prompt_id, num_tokens, seeds):
    prompt = Prompt(prompt_id=prompt_id, token_ids_T=(1,) * num_tokens, text="")
    return GenerationRequest(
        prompt=prompt,
        draw=next(NEXT_DRAW),
        seeds_G=tuple(seeds),
        temperature=1.0,
        max_new_tokens=10,
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


async def drawn(replicas, requests):
    groups = await sample_all(replicas, requests)
    assert [(group.draw, group.prompt) for group in groups] == [
        (request.draw, request.prompt) for request in requests
    ]
    return [row for group in groups for row in ray.get(group.rollouts, timeout=30)]


async def test_groups_come_in_the_order_of_requests(replicas):
    backwards = [ROWS[row] for row in (6, 5, 3, 4, 0, 1, 2)]
    for requests, expected in ((REQUESTS, ROWS), (REQUESTS[::-1], backwards)):
        rows = await drawn(replicas, requests)
        assert [(prompt_id, sample, seed) for prompt_id, sample, seed, _ in rows] == expected
        assert {replica for *_, replica in rows} == {0, 1}


async def test_a_group_is_there_as_soon_as_it_is_sampled(replicas):
    answers = await replicas.generate(REQUESTS)
    done, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED, timeout=30)
    assert answers[0] not in done, "the first replica is the slower one"
    await asyncio.gather(*answers)


async def test_a_replica_that_failed_is_named_and_counts_as_idle_again(replicas):
    for bad in ("refused", "bad"):
        message = r"rollout.generate: job/rollout/1 failed .* no such prompt"
        with pytest.raises(RunError, match=message):
            await sample_all(replicas, [*REQUESTS[:1], request(bad, 1, (1,))])
        await asyncio.sleep(0.1)  # for what is given up
        rows = await drawn(replicas, REQUESTS)
        # As if nothing had been: the first request goes to the first replica again.
        assert [replica for *_, replica in rows] == [0, 0, 0, 1, 1, 1, 1]


async def test_a_replica_is_told_what_nobody_waits_for(replicas):
    endless = request("endless", 10, (1,))
    with pytest.raises(RunError, match="no such prompt"):
        await sample_all(replicas, [endless, request("bad", 1, (1,))])
    await asyncio.sleep(0.1)
    told = replicas.actors.actors[0].told_to_abort.remote()
    assert ray.get(told, timeout=30) == [endless.draw]
