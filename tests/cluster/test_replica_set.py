"""Several replicas answer as one: groups in the order that they were asked for."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import ray

from actors.cluster.role_handle import RoleHandle
from actors.engines.fleet import Fleet
from actors.engines.replica_set import ReplicaSet
from actors.engines.samples import Ending
from rlhf_ray.errors import RunError
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.rollouts.feed import sample_all
from rlhf_ray.types import Prompt, RolloutSummary


@pytest.fixture(scope="module")
def replica_class(cluster):
    @ray.remote(num_cpus=0)
    class Replica:
        """Says of every sample which replica drew it; the first replica is the slower one."""

        def __init__(self, number):
            self.number, self.sleeps, self.dropped = number, False, []
            self.requests, self.admissions = {}, []

        async def sleep(self, level, timeout_s):
            self.sleeps = True

        async def wake_up(self, part, timeout_s):
            self.sleeps = False

        async def admit(self, requests, ending, timeout_s, together, acting=None):
            assert not self.sleeps
            assert (ending.stop, timeout_s) == ((".",), 60.0)
            self.requests |= {request.draw: request for request in requests}
            self.admissions.append((together, [request.draw for request in requests]))
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

        async def drop(self, draws):
            self.dropped += draws

        async def health(self):
            return {"fault": "", "updating": False}

        async def seen(self):
            return self.admissions, self.dropped

    return Replica


@pytest.fixture
def replicas(replica_class):
    actors = [replica_class.remote(number) for number in range(2)]
    named = {f"job/rollout/{number}": actor for number, actor in enumerate(actors)}
    ending = Ending(stop=(".",))
    role = RoleHandle("rollout", named)
    fleet = Fleet.with_own_weights(len(role))
    yield ReplicaSet(role, ending, timeout_s=60.0, sleeps=False, seats=3, fleet=fleet)
    for actor in actors:
        ray.kill(actor)


async def test_requests_wake_replicas_that_sleep_on_a_shared_gpu(replicas):
    shared = ReplicaSet(
        replicas.actors,
        replicas.ending,
        timeout_s=60.0,
        sleeps=True,
        seats=3,
        fleet=Fleet.with_own_weights(2),
    )
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


async def seen(replicas, number):
    asked = replicas.actors.actors[number].seen.remote()
    (seen,) = await replicas.actors.answers([asked], "seen", timeout_s=30, ranks=[number])
    return seen


def idle(replicas):
    dispatch = replicas.dispatch
    return not any((*dispatch.seats_taken, *dispatch.tokens_in_flight, dispatch.num_waiting))


async def test_a_replica_is_told_what_nobody_waits_for(replicas):
    endless, bad = request("endless", 10, (1,)), request("bad", 1, (1,))
    with pytest.raises(RunError, match="no such prompt"):
        await sample_all(replicas, [endless, bad])
    await asyncio.sleep(0.1)
    assert await seen(replicas, 0) == ([(True, [endless.draw])], [endless.draw])
    assert await seen(replicas, 1) == ([(True, [bad.draw])], [bad.draw])


async def test_an_answer_that_is_cancelled_before_it_begins_is_given_up(replicas):
    for together in (True, False):
        answers = await replicas.generate([request("endless", 1, (1,))] * 2, together=together)
        for answer in answers:
            answer.cancel()
        await asyncio.wait(answers)
        assert idle(replicas)


async def test_groups_alone_wait_for_seats_in_the_order_in_which_they_came(replicas):
    endless = [request("endless", 1, (1, 2)), request("endless", 1, (1, 2, 3))]
    wide, narrow = request("a", 1, (1, 2)), request("b", 1, (1,))
    answers = [
        answer
        for one in (*endless, wide, narrow)
        for answer in await replicas.generate([one], together=False)
    ]
    await asyncio.sleep(0.3)
    # The first replica has a seat left, but who came first needs two.
    assert not any(answer.done() for answer in answers)
    assert replicas.dispatch.num_waiting == 2
    # A wave waits for nobody, and an evaluation is one.
    [group] = await sample_all(replicas, [request("c", 1, (1,))])
    assert len(group.summaries_G) == 1
    answers[2].cancel()
    groups = await asyncio.wait_for(answers[3], 30)
    assert groups.draw == narrow.draw
    [large] = await replicas.generate([request("d", 1, range(5))], together=False)
    for answer in answers[:2]:
        answer.cancel()
    assert len((await asyncio.wait_for(large, 30)).summaries_G) == 5
    await asyncio.sleep(0.1)
    assert idle(replicas)
    admissions, dropped = await seen(replicas, 0)
    assert (False, [endless[0].draw]) in admissions
    assert set(dropped) == {draw for _, draws in admissions for draw in draws}
    assert wide.draw not in dropped, "it was never admitted"


async def test_a_group_alone_that_fails_gives_its_seats_back(replicas):
    for bad in ("refused", "bad"):
        [answer] = await replicas.generate([request(bad, 1, (1, 2))], together=False)
        with pytest.raises(RunError, match=r"rollout.generate: job/rollout/0 failed .* no such"):
            await answer
        assert idle(replicas)
