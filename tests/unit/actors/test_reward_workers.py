"""Workers may hang, die and raise: each costs the group that did it, and no other."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import ray
from fake_actors import FakeHandle
from fake_groups import group_of
from ray.exceptions import RayActorError

from actors.cluster.role_handle import RoleHandle
from actors.pool.restart import Restarts
from actors.ranks import reward_workers
from actors.ranks.reward_worker import Failed, LoadedFunctions, RewardWorker, WorkerSpec
from actors.ranks.reward_workers import RewardWorkers
from rlhf_ray.config.fault_tolerance import ActorFailureConfig, TimeoutConfig
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.errors import ActorDied, GroupFailed, RunError

PLAIN = LoadedFunctions(weights={"f": 1.0}, plain=("f",))
ASYNC = LoadedFunctions(weights={"f": 1.0}, plain=())
BOTH = LoadedFunctions(weights={"f": 1.0, "g": 1.0}, plain=("f",))
REWARD = RewardConfig.model_validate({"functions": [{"path": "a:f"}, {"path": "a:g"}]})


class Process:
    """One of the workers; what it does with a group, `acts` says by its draw.

    A `crash` ends all calls that are in it, and whatever it is asked then.
    """

    def __init__(self, acts: dict[int, str], log: list[tuple[str, int]]) -> None:
        self.acts, self.log, self.inside = acts, log, Counter[int]()
        self.died = asyncio.Event()

    async def score(self, names: Any, refs: Any, samples_G: Any, timeout_s: float) -> Any:
        if self.died.is_set():
            raise RayActorError
        [draw] = refs
        act = self.acts.get(draw, "")
        self.log.append((act or "score", draw))
        self.inside[draw] += 1
        dies = asyncio.ensure_future(self.died.wait())
        try:
            await asyncio.wait([dies], timeout=0.01)
            if act == "crash":
                self.died.set()
            if self.died.is_set():
                raise RayActorError
            if act == "silent":
                await dies
                raise RayActorError
            if act in ("hung", "raised"):
                return Failed(cause=act, message=f"the function {act}")
            return {name: [float(draw)] for name in names}
        finally:
            dies.cancel()
            self.inside[draw] -= 1

    def health(self) -> None:
        if self.died.is_set():
            raise RayActorError


class Pool:
    """Starts workers again, each time only those that are dead, after a moment."""

    def __init__(self, num: int, acts: dict[int, str], monkeypatch: Any) -> None:
        self.acts, self.log, self.num_started = acts, list[tuple[str, int]](), 0
        self.restarts = list[list[int]]()
        self.handle: RoleHandle[RewardWorker] = RoleHandle("reward_worker")
        names = [f"w/{number}" for number in range(num)]
        spec = WorkerSpec(actor_class=RewardWorker)
        self.handle.replace({name: self.process() for name in names}, spec=spec)
        # None is to be counted: what the workers run decides how often they die.
        never = ActorFailureConfig(restarts=0)
        self.again = Restarts(never, self._restart)
        monkeypatch.setattr(ray, "kill", lambda actor: actor._actor.died.set())

    def process(self) -> FakeHandle:
        self.num_started += 1
        return FakeHandle(Process(self.acts, self.log))

    async def restart(self, died: ActorDied) -> None:
        await self.again.after(died, {"reward_worker": self.handle})

    async def _restart(self, role: str, ranks: object = None) -> None:
        handle = self.handle
        broken = await handle.spec.broken(handle)
        self.restarts.append(list(broken))
        await asyncio.sleep(0.02)
        handle.give_way_to(handle.successor({handle.names[i]: self.process() for i in broken}))


def workers_of(pool: Pool, functions: LoadedFunctions, **timeouts: float) -> RewardWorkers:
    return RewardWorkers(
        pool.handle,
        functions,
        reward=REWARD,
        timeouts=TimeoutConfig.model_validate({"place_s": 5.0, "start_s": 5.0, **timeouts}),
        restart=pool.restart,
    )


async def causes_of(workers: RewardWorkers, draws: range) -> dict[int, str]:
    """Of those that failed; the others have their own scores."""
    asked = (workers.score(group_of(draw)) for draw in draws)
    answers = await asyncio.gather(*asked, return_exceptions=True)
    causes = {}
    for draw, answer in zip(draws, answers, strict=True):
        if isinstance(answer, GroupFailed):
            causes[draw] = str(answer.cause)
        else:
            assert answer == {name: [float(draw)] for name in workers.weights}, answer
    return causes


@pytest.mark.parametrize("functions", [PLAIN, ASYNC, BOTH], ids=["plain", "async", "both"])
@pytest.mark.parametrize("num", [1, 4])
async def test_each_failure_costs_the_group_that_did_it(functions, num, monkeypatch):
    acts = {3: "crash", 7: "raised", 11: "crash", 12: "hung", 13: "crash", 30: "raised"}
    pool = Pool(num, acts, monkeypatch)
    causes = await causes_of(workers_of(pool, functions), range(40))
    assert causes == {draw: act.replace("crash", "crashed") for draw, act in acts.items()}
    assert [actor._actor.inside.total() for actor in pool.handle.actors] == [0] * num


async def test_several_groups_at_a_death_are_asked_about_again_alone(monkeypatch):
    pool = Pool(1, {0: "crash"}, monkeypatch)
    assert await causes_of(workers_of(pool, ASYNC), range(8)) == {0: "crashed"}
    assert Counter(draw for _, draw in pool.log) == dict.fromkeys(range(8), 2)
    assert pool.num_started == 3


async def test_a_death_that_does_not_come_again_is_nobody_s_failure(monkeypatch):
    pool = Pool(1, {}, monkeypatch)
    workers = workers_of(pool, PLAIN)
    pool.handle.actors[0]._actor.died.set()  # killed while it was idle
    assert await causes_of(workers, range(3)) == {}
    assert pool.num_started == 2


async def test_a_group_that_ended_a_process_is_known_when_it_is_tried_again(monkeypatch):
    pool = Pool(2, {0: "crash"}, monkeypatch)
    workers = workers_of(pool, PLAIN)
    for _ in range(3):
        assert await causes_of(workers, range(2)) == {0: "crashed"}
    assert Counter(draw for _, draw in pool.log) == {0: 4, 1: 3}


async def test_groups_at_other_workers_are_not_disturbed(monkeypatch):
    pool = Pool(3, {0: "crash"}, monkeypatch)
    assert await causes_of(workers_of(pool, PLAIN), range(30)) == {0: "crashed"}
    assert Counter(draw for _, draw in pool.log) == {0: 2} | dict.fromkeys(range(1, 30), 1)
    assert [len(broken) for broken in pool.restarts] == [1, 1]


async def test_a_function_that_hangs_has_its_worker_replaced_where_it_is_plain(monkeypatch):
    for functions, num_started in ((PLAIN, 2), (ASYNC, 1)):
        pool = Pool(1, {0: "hung"}, monkeypatch)
        assert await causes_of(workers_of(pool, functions), range(3)) == {0: "hung"}
        assert pool.num_started == num_started


async def test_a_worker_that_does_not_answer_at_all_is_killed_and_has_hung(monkeypatch):
    monkeypatch.setattr(reward_workers, "SLACK_S", 0.1)
    pool = Pool(2, {0: "silent"}, monkeypatch)
    assert await causes_of(workers_of(pool, PLAIN, reward_s=0.2), range(4)) == {0: "hung"}
    assert pool.num_started == 3


async def test_of_several_groups_in_a_silent_worker_only_the_cause_has_hung(monkeypatch):
    monkeypatch.setattr(reward_workers, "SLACK_S", 0.1)

    class Silent(Process):
        """Nobody is answered beside draw 0."""

        async def score(self, names: Any, refs: Any, *others: Any) -> Any:
            if refs == [0] or self.inside[0]:
                self.inside[refs[0]] += 1
                await self.died.wait()
                raise RayActorError
            return await super().score(names, refs, *others)

    pool = Pool(1, {}, monkeypatch)
    pool.process = lambda: FakeHandle(Silent(pool.acts, pool.log))
    pool.handle.replace({"w/0": pool.process()}, spec=pool.handle.spec)
    assert await causes_of(workers_of(pool, ASYNC, reward_s=0.2), range(6)) == {0: "hung"}


async def test_what_cannot_be_started_again_ends_the_run(monkeypatch):
    pool = Pool(1, {0: "crash"}, monkeypatch)

    async def fails(died: ActorDied) -> None:
        raise ActorDied.of("w/0 died again", role=died.role, index=0, operation="load", age_s=0.0)

    pool.restart = fails
    with pytest.raises(RunError, match="w/0 died again") as caught:
        await workers_of(pool, PLAIN).score(group_of(0))
    assert not isinstance(caught.value, ActorDied | GroupFailed), "nobody repeats it"


async def test_the_death_of_another_role_is_told_as_it_is(monkeypatch):
    pool = Pool(1, {}, monkeypatch)

    class Fetching(Process):
        async def score(self, *_: Any) -> Any:
            raise ActorDied.of("gone", role="rollout", index=1, operation="fetch", age_s=0.0)

    pool.handle.replace({"w/0": FakeHandle(Fetching({}, []))}, spec=None)
    with pytest.raises(ActorDied, match="gone") as caught:
        await workers_of(pool, PLAIN).score(group_of(0))
    assert (caught.value.role, pool.restarts) == ("rollout", [])
