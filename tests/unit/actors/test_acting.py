"""Groups whose environment failed are sampled again; workers of no use are started again."""

from __future__ import annotations

import asyncio

import pytest

from actors.cluster.role_handle import RoleHandle
from actors.pool.restart import Restarts
from actors.roles.acting import ActingEngines
from rlhf_ray.config.fault_tolerance import ActorFailureConfig
from rlhf_ray.errors import ActorDied, EnvironmentFailed, RunError


class Spec:
    """Of workers, some of which are of no use."""

    runs_user_code = False

    def __init__(self):
        self.faulty, self.num_asked = [], 0

    async def broken(self, role):
        self.num_asked += 1
        return self.faulty


class Engines:
    """Answer with what is prepared for a draw, one attempt after the other."""

    def __init__(self, **answers):
        self.answers = {draw: list(given) for draw, given in answers.items()}
        self.asked, self.cancelled = [], []

    async def generate(self, requests, *, together=True):
        self.asked.append((list(requests), together))
        return [asyncio.ensure_future(self._answer(request)) for request in requests]

    async def _answer(self, request):
        given = self.answers[request].pop(0)
        try:
            await asyncio.sleep(0 if given != "waits" else 60)
        except asyncio.CancelledError:
            self.cancelled.append(request)
            raise
        if isinstance(given, BaseException):
            raise given
        return given


class Pool:
    def __init__(self):
        self.spec, self.workers = Spec(), RoleHandle("environment")
        self.workers.replace({"environment/0": None, "environment/1": None}, spec=self.spec)
        self.state = type("State", (), {"roles": {"environment": self.workers}})
        self.restarts = Restarts(ActorFailureConfig(restarts=2, backoff_s=0.0), self.restart)
        self.num_restarts = 0

    async def restart(self, role, ranks=None):
        self.num_restarts += 1
        self.spec.faulty = []
        self.workers.give_way_to(self.workers.successor({}))


def failed(fault):
    return EnvironmentFailed.by(fault, f"it {fault}")


def engines_of(pool, retries=1, **answers):
    engines = Engines(**answers)
    return engines, ActingEngines(engines, pool, pool.workers, retries=retries)


async def test_the_group_that_failed_is_sampled_again_and_no_other():
    pool = Pool()
    engines, acting = engines_of(pool, a=["A"], b=[failed("raised"), "B"])
    answers = await acting.generate(["a", "b"])
    assert [await answer for answer in answers] == ["A", "B"]
    assert engines.asked == [(["a", "b"], True), (["b"], False)]
    assert acting.take_failures() == {
        "environment/failed_raised": 1.0,
        "environment/failed_late": 0.0,
        "environment/failed_died": 0.0,
    }
    assert not any(acting.take_failures().values())
    assert not pool.spec.num_asked, "what raises has a worker that answers"


async def test_what_fails_again_and_again_is_raised():
    _, acting = engines_of(Pool(), a=[failed("raised"), failed("late")])
    [answer] = await acting.generate(["a"])
    with pytest.raises(EnvironmentFailed, match="it late"):
        await answer


async def test_a_death_that_a_worker_was_replaced_for_is_none_of_the_groups_failures():
    pool = Pool()
    _, acting = engines_of(pool, retries=0, a=[failed("died"), "A"], b=[failed("died"), "B"])
    pool.spec.faulty = [1]
    answers = await acting.generate(["a", "b"])
    assert [await answer for answer in answers] == ["A", "B"]
    assert pool.num_restarts == 1


async def test_a_death_of_none_of_the_workers_is_the_groups():
    _, acting = engines_of(Pool(), a=[failed("died")] * 9)
    [answer] = await acting.generate(["a"])
    with pytest.raises(EnvironmentFailed, match="it died"):
        await answer


async def test_workers_are_started_again_so_often_and_no_more():
    pool = Pool()
    _, acting = engines_of(pool, a=[failed("died")] * 9)

    async def restart(role, ranks=None):
        pool.num_restarts += 1
        pool.workers.give_way_to(pool.workers.successor({}))

    pool.restarts._restart = restart
    pool.spec.faulty = [0]
    [answer] = await acting.generate(["a"])
    with pytest.raises(ActorDied, match=r"environment/0 is dead, or .*started again 2 times"):
        await answer
    assert pool.num_restarts == 2


async def test_other_failures_are_not_repeated():
    _, acting = engines_of(Pool(), a=[RunError("its engine died"), "A"])
    [answer] = await acting.generate(["a"])
    with pytest.raises(RunError, match="its engine died"):
        await answer


@pytest.mark.parametrize("before", [True, False])
async def test_whoever_cancels_ends_the_groups_requests(before):
    engines, acting = engines_of(Pool(), a=[failed("raised"), "waits"])
    [answer] = await acting.generate(["a"])
    if not before:
        while len(engines.asked) < 2:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    answer.cancel()
    await asyncio.wait([answer])
    for _ in range(5):
        await asyncio.sleep(0)
    assert before or engines.cancelled == ["a"]
    assert len(engines.asked) == (1 if before else 2)
