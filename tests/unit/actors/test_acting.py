"""Workers of no use are started again, and a group is told of what is its own doing."""

from __future__ import annotations

import asyncio

import pytest

from actors.cluster.role_handle import RoleHandle
from actors.pool.restart import Restarts
from actors.roles.acting import ActingEngines
from rlhf_ray.config.fault_tolerance import ActorFailureConfig, TimeoutConfig
from rlhf_ray.errors import ActorDied, GroupFailed, RunError


class Spec:
    """Of workers, some of which are of no use."""

    runs_user_code = True

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


class Request(str):
    """A draw that is asked for, by its name."""

    @property
    def draw(self):
        return str(self)


def failed(cause):
    return GroupFailed.of(f"it {cause}", cause=cause)


def engines_of(pool, **answers):
    engines = Engines(**answers)
    return engines, ActingEngines(engines, pool, pool.workers, timeouts=TimeoutConfig())


async def asked(acting, *draws):
    return await acting.generate([Request(draw) for draw in draws])


@pytest.mark.parametrize("cause", ["raised", "hung", "crashed"])
async def test_what_an_environment_did_is_its_groups_and_no_other(cause):
    pool = Pool()
    engines, acting = engines_of(pool, a=["A"], b=[failed(cause)])
    sampled, unsampled = await asked(acting, "a", "b")
    assert await sampled == "A"
    with pytest.raises(GroupFailed, match=f"it {cause}") as caught:
        await unsampled
    assert caught.value.cause == cause
    assert engines.asked == [(["a", "b"], True)]
    assert pool.spec.num_asked == (cause != "raised"), "what raises has a worker that answers"


def dying_with(pool, engines, *culprits):
    """Have a worker be of no use behind each try of these draws, and whatever else is on it fail.

    Returns:
        The draws that are under way together, once a try.
    """
    under_way, seen = set(), []
    answer = engines._answer

    async def dying(request):
        under_way.add(request)
        try:
            for _ in range(3):  # rounds of the event loop, not time: a busy machine has the same
                await asyncio.sleep(0)
            seen.append(sorted(under_way))
            if under_way & {*culprits}:
                pool.spec.faulty = [0]
                raise failed("crashed")
            return await answer(request)
        finally:
            await asyncio.sleep(0)  # all of them meet the death
            under_way.discard(request)

    engines._answer = dying
    return seen


async def test_a_workers_death_is_the_group_s_that_has_it_alone():
    pool, names = Pool(), [f"g{number:02d}" for number in range(20)]
    engines, acting = engines_of(pool, **{name: [name] for name in names})
    seen = dying_with(pool, engines, "g05")
    answers = await asyncio.gather(*await asked(acting, *names), return_exceptions=True)
    culprit = answers.pop(5)
    assert isinstance(culprit, GroupFailed) and culprit.cause == "crashed"
    assert answers == names[:5] + names[6:]
    sizes = [len(together) for together in seen]
    assert sizes[:20] == [20] * 20, "all at once"
    assert max(sizes[20:]) == 8 and sizes[-1] == 1, "then a few, then one by one"
    assert pool.num_restarts == 3
    # Asked for again it has a turn of its own at once; one that succeeds is as any other then.
    seen.clear()
    [again], [other] = await asked(acting, "g05"), await asked(acting, "g06")
    engines.answers["g06"] = ["g06"]
    with pytest.raises(GroupFailed):
        await again
    assert len(engines.asked[-1][0]) == 1
    await asyncio.wait([other])


async def test_workers_that_die_while_they_start_end_the_run():
    pool = Pool()
    _, acting = engines_of(pool, a=[failed("crashed")] * 9)

    async def restart(role, ranks=None):
        pool.num_restarts += 1
        died = ActorDied.of("it died", role="environment", index=0, operation="load", age_s=0.0)
        raise died

    pool.restarts._restart = restart
    pool.spec.faulty = [0]
    [answer] = await asked(acting, "a")
    with pytest.raises(ActorDied, match=r"it died .*started again 2 times"):
        await answer
    assert pool.num_restarts == 3


async def test_other_failures_are_not_repeated():
    _, acting = engines_of(Pool(), a=[RunError("its engine died"), "A"])
    [answer] = await asked(acting, "a")
    with pytest.raises(RunError, match="its engine died"):
        await answer


@pytest.mark.parametrize("before", [True, False])
async def test_whoever_cancels_ends_the_groups_requests(before):
    pool = Pool()
    engines, acting = engines_of(pool, a=[failed("crashed"), "waits"])
    pool.spec.faulty = [0]
    [answer] = await asked(acting, "a")
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
