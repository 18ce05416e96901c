"""Engines die at any moment: none samples from weights that it did not acknowledge and prove."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from fake_actors import FakeHandle
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.exceptions import RayActorError

from actors.cluster.role_handle import RoleHandle
from actors.engines.fleet import Fleet, State
from actors.engines.replica_set import ReplicaSet
from actors.engines.samples import Ending
from actors.ranks.policy import PolicyGroup
from actors.weights.probe import EXACT, probe_sequences
from actors.weights.sync_spec import Sent, SyncSpec
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.errors import ActorDied, RunError
from rlhf_ray.loops.publication import publish, with_engines
from rlhf_ray.roles.groups import GenerationRequest
from rlhf_ray.types import Prompt

PROMPT = Prompt(prompt_id="p", token_ids_T=(1, 2), text="")
TIMEOUTS = TimeoutConfig(publish_s=5.0, call_s=5.0, start_s=5.0)
NUM_BUCKETS = 3
SYNC = SyncSpec(backend="object_store", gpus_per_replica=0, bucket_bytes=1, timeout_s=5.0)


class Engine:
    """One replica's process. Weights that come by half mix with those that were there.

    Attributes:
        dice: Whether it dies, or loses its engine, with the next call.
        version: Of its weights, if all of them are of one.
        proven: The version that the probe was computed with last.
    """

    def __init__(self, dice: Dice) -> None:
        self.dice, self.is_dead, self.fault, self.is_asleep = dice, False, "", False
        self.version: float = -1.0
        self.amid: list[int] | None = None
        self.proven = -2.0
        self.groups: dict[int, float] = {}

    async def _trip(self) -> None:
        for _ in range(self.dice.random.randrange(3)):
            await asyncio.sleep(0)
        if self.dice.falls("death"):
            self.is_dead = True
        if self.dice.falls("fault"):
            self.fault = "its engine died"
        self._require_life()

    def _require_life(self) -> None:
        if self.is_dead:
            raise RayActorError(error_msg="killed")
        if self.fault:
            raise RunError(f"cannot be used: {self.fault}")

    async def health(self) -> dict[str, Any]:
        if self.is_dead:
            raise RayActorError(error_msg="killed")
        return {"fault": self.fault, "updating": self.amid is not None}

    async def admit(
        self, requests: Any, ending: Any, timeout_s: float, together: bool, acting: Any = None
    ) -> None:
        await self._trip()
        for request in requests:
            assert request.draw not in self.groups
            self.groups[request.draw] = self.version

    async def finished(self, draw: int) -> list[Any]:
        await self._trip()
        return [(self.groups[draw], self.proven, self)]

    def drop(self, draws: Any) -> None:
        for draw in draws:
            self.groups.pop(draw, None)

    async def start_weight_update(self, timeout_s: float, keeps_cache: bool) -> None:
        await self._trip()
        assert not self.is_asleep
        assert self.amid is None, "an update begins in an engine that is amid another"
        self.amid, self.version = [], np.nan

    async def update_weights(self, bucket: int) -> None:
        await self._trip()
        assert self.amid is not None
        self.amid.append(bucket)

    async def finish_weight_update(self, version: int, base: str) -> int:
        await self._trip()
        assert self.amid == list(range(NUM_BUCKETS))
        self.amid, self.version = None, float(version)
        return version

    async def sleep(self, level: int, timeout_s: float) -> None:
        await self._trip()
        self.is_asleep = True
        if level == 2:
            self.version = np.nan

    async def wake_up(self, part: str | None, timeout_s: float) -> None:
        await self._trip()
        assert part == "weights" or not np.isnan(self.version), "it wakes up without a model"
        self.is_asleep = False

    async def logprobs(self, rollouts: Any, timeout_s: float) -> list[Any]:
        await self._trip()
        assert not self.is_asleep
        self.proven = self.version
        return [np.full(1, self.version)]


class EngineHandle(FakeHandle):
    """Runs at once what nobody waits for."""

    def __getattr__(self, name: str) -> Any:
        if name == "drop":
            return SimpleNamespace(remote=self._actor.drop)
        return super().__getattr__(name)


class Trainer:
    """Rank 0 of the policy, which may die wherever it waits."""

    def __init__(self, dice: Dice) -> None:
        self.dice, self.version = dice, -1

    def rendezvous(self) -> tuple[str, int]:
        return "here", 1

    def connect(self, *_: Any) -> None:
        pass

    async def logprobs_of(self, rollouts: Any) -> list[Any]:
        if self.dice.falls("policy's death"):
            raise RayActorError(error_msg="killed")
        return [np.full(1, float(self.version))]

    async def publish(self, version: int, replicas: RoleHandle[Any], adapter_alone: bool) -> Sent:
        self.version, failed = version, dict[str, str]()
        calls = [
            (Engine.start_weight_update, (5.0, False)),
            *((Engine.update_weights, (bucket,)) for bucket in range(NUM_BUCKETS)),
            (Engine.finish_weight_update, (version, "")),
        ]
        for method, arguments in calls:
            for index, name in enumerate(replicas.names):
                if self.dice.falls("policy's death"):
                    raise RayActorError(error_msg="killed")
                if self.dice.falls("late"):
                    failed.setdefault(name, "no answer in time")
                if name not in failed:
                    try:
                        await replicas.start(method, index)(*arguments)
                    except (RayActorError, RunError) as error:
                        failed[name] = str(error)
        return Sent(num_bytes=1, failed=failed)


class Dice:
    def __init__(self, seed: int, chances: dict[str, float]) -> None:
        self.random, self.chances = random.Random(seed), chances

    def falls(self, what: str) -> bool:
        return self.random.random() < self.chances.get(what, 0.0)


class World:
    """The rollout role and a policy of one rank, in a job that publishes and samples."""

    def __init__(
        self,
        num_replicas: int,
        dice: Dice,
        *,
        most_starts: int = 1000,
        sleeps: bool = False,
        again_s: float | None = None,
    ) -> None:
        self.dice, self.num_starts, self.most_starts = dice, 0, most_starts
        self.has_room = True
        names = [f"job/rollout/{number}" for number in range(num_replicas)]
        self.engines: list[Engine] = [Engine(dice) for _ in names]
        self.actors: RoleHandle[Any] = RoleHandle("rollout")
        self.actors.replace(
            dict(zip(names, map(EngineHandle, self.engines), strict=True)), spec=None
        )
        self.rollout = ReplicaSet(
            self.actors,
            Ending(),
            timeout_s=5.0,
            sleeps=sleeps,
            seats=4,
            replace=self.replace,
            again_s=again_s,
        )
        trainer: RoleHandle[Any] = RoleHandle("policy", {"job/policy/0": FakeHandle(Trainer(dice))})
        self.policy = PolicyGroup(actors=trainer, config=LearnerConfig(), timeouts=TIMEOUTS)
        probe = probe_sequences([PROMPT], 1)
        self.policy.publish_to(self.rollout, SYNC, probe=probe, limits=EXACT)
        self.roles: Any = SimpleNamespace(
            rollout=self.rollout, policy=self.policy, value=None, reference=None, reward=None
        )
        self.draws = itertools.count()
        self.version = -1

    async def replace(self, died: ActorDied) -> None:
        await asyncio.sleep(0)
        self.num_starts += 1
        if self.num_starts > self.most_starts or not self.has_room:
            raise ActorDied.of(
                f"{died}: too often", role="rollout", index=died.index, operation="", age_s=0.0
            )
        rank = died.index
        self.engines[rank] = Engine(self.dice)
        new = self.actors.successor({self.actors.names[rank]: EngineHandle(self.engines[rank])})
        self.actors.give_way_to(new, [rank])

    async def publish(self, version: int, *, exactly: bool = False) -> None:
        self.version = version
        while True:
            try:
                published = await publish(self.roles, version, exactly=exactly)
            except ActorDied as died:
                assert died.role == "policy"
                self.policy.disconnected()  # it is there again, restored
                continue
            assert published.version == version
            return

    def requests(self, num: int, *, newest: int | None) -> list[GenerationRequest]:
        return [
            GenerationRequest(
                prompt=PROMPT,
                draw=next(self.draws),
                seeds_G=(1, 2),
                temperature=1.0,
                max_new_tokens=4,
                newest_version=newest,
            )
            for _ in range(num)
        ]

    async def sample(self, num: int, *, together: bool) -> None:
        requests = self.requests(num, newest=self.version)

        async def call() -> list[Any]:
            answers = await self.rollout.generate(requests, together=together)
            return await asyncio.gather(*answers)

        while True:
            try:
                groups = await with_engines(self.roles, self.version, call)
            except ActorDied as died:
                assert died.role == "policy"
                self.policy.disconnected()
                continue
            break
        assert [group.draw for group in groups] == [request.draw for request in requests]
        for group in groups:
            [(version, proven, _)] = group.summaries_G
            assert version == proven, "it sampled from weights that no probe has seen"
            assert version == self.version or not together

    def check(self) -> None:
        for replica, engine in enumerate(self.engines):
            if self.rollout.fleet.state(replica) in (State.SERVING, State.SUSPECT):
                assert engine.amid is None
                assert engine.version == engine.proven == self.rollout.fleet.version(replica)
        assert not any(self.rollout.dispatch.seats_taken)
        assert not self.rollout.dispatch.num_waiting


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "kill", lambda actor: None)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(0, 2)),
        st.tuples(st.just("wave"), st.integers(1, 5)),
        st.tuples(st.just("groups"), st.integers(1, 5)),
        st.tuples(st.just("killed"), st.integers(0, 2)),
        st.tuples(st.just("suspected"), st.integers(0, 2)),
        st.tuples(st.just("answered"), st.integers(0, 2)),
        st.tuples(st.just("go back"), st.integers(1, 3)),
    ),
    max_size=14,
)
CHANCES = st.fixed_dictionaries(
    {
        "death": st.sampled_from([0.0, 0.02, 0.15]),
        "fault": st.sampled_from([0.0, 0.02, 0.1]),
        "policy's death": st.sampled_from([0.0, 0.05]),
        "late": st.sampled_from([0.0, 0.05]),
    }
)


@settings(max_examples=100, deadline=None)
@given(events=EVENTS, num_replicas=st.integers(1, 3), seed=st.integers(0, 2**32), chances=CHANCES)
def test_who_serves_has_acknowledged_and_proven_its_weights(events, num_replicas, seed, chances):
    async def play():
        world = World(num_replicas, Dice(seed, chances))
        await world.publish(0)
        world.check()
        for event, number in events:
            replica = number % num_replicas
            if event == "publish":
                await world.publish(world.version + number)
            elif event == "go back":  # its steps are done again, with what engines have or had
                world.policy.disconnected()
                world.version = max(0, world.version - number)
                await world.publish(world.version)
            elif event == "killed":
                world.engines[replica].is_dead = True
            elif event == "suspected":
                world.rollout.replacement.suspected(replica)
            elif event == "answered":
                engine = world.engines[replica]
                if not engine.is_dead:
                    world.rollout.replacement.answered(replica, await engine.health())
            else:
                # Who is suspected answers, or is killed by the watch.
                for suspect in world.rollout.fleet.those(State.SUSPECT):
                    world.rollout.replacement.answered(suspect, {"fault": ""})
                await world.sample(number, together=event == "wave")
            world.check()
        dice = world.dice
        dice.chances = {}
        await world.publish(world.version + 4, exactly=True)
        await world.sample(3, together=True)
        world.check()

    asyncio.run(play())


async def played(num_replicas=2, **options):
    world = World(num_replicas, Dice(0, {}), **options)
    await world.publish(0)
    return world


def engines_of(groups):
    return Counter(id(group.summaries_G[0][2]) for group in groups)


async def test_groups_of_a_dead_engine_go_to_another_and_none_is_done_twice():
    world = await played()
    dying, other = world.engines
    real, num_calls = dying.finished, 0

    async def finished(draw):
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2:
            dying.is_dead = True
        dying._require_life()
        return await real(draw)

    dying.finished = finished
    answers = await world.rollout.generate(world.requests(6, newest=0), together=True)
    assert len(dying.groups) == len(other.groups) == 3
    groups = await asyncio.gather(*answers)
    assert engines_of(groups) == {id(dying): 1, id(other): 5}
    assert world.rollout.fleet.state(0) == State.STALE, "the new one waits for weights"
    assert await asyncio.gather(*await world.rollout.generate(world.requests(2, newest=0)))
    assert not world.engines[0].groups
    await world.publish(1)
    groups = await asyncio.gather(*await world.rollout.generate(world.requests(2, newest=1)))
    assert len(engines_of(groups)) == 2


async def test_the_new_engine_joins_while_others_sample_and_only_it_gets_the_weights():
    world = await played()
    slow = asyncio.Event()

    async def finished(draw):
        await slow.wait()
        return [(0.0, 0.0, world.engines[1])]

    world.engines[1].finished = finished

    async def call():
        answers = await world.rollout.generate(world.requests(4, newest=0), together=True)
        world.engines[0].is_dead = True
        for _ in range(1000):
            if world.rollout.fleet.those(State.SERVING) == [0, 1] and world.num_starts:
                slow.set()
            await asyncio.sleep(0)
            if all(answer.done() for answer in answers):
                break
        return [await answer for answer in answers]

    groups = await with_engines(world.roles, 0, call)
    assert len(groups) == 4
    assert world.engines[0].version == world.engines[0].proven == 0.0
    assert world.engines[1].proven == 0.0


async def test_without_an_engine_groups_wait_for_the_new_one():
    for together in (True, False):
        world = await played(1)
        world.engines[0].is_dead = True
        await world.sample(5, together=together)
        assert world.num_starts == 1
        world.check()


async def test_a_suspect_keeps_its_groups_and_gets_no_new_ones():
    world = await played()
    world.rollout.replacement.suspected(0)
    alone = await world.rollout.generate(world.requests(4, newest=0), together=False)
    assert engines_of(await asyncio.gather(*alone)) == {id(world.engines[1]): 4}
    wave = asyncio.ensure_future(world.rollout.generate(world.requests(4, newest=0)))
    for _ in range(9):
        await asyncio.sleep(0)
    assert not wave.done(), "how a wave is divided decides its last bits"
    world.rollout.replacement.answered(0, {"fault": ""})
    assert len(engines_of(await asyncio.gather(*await wave))) == 2
    world.rollout.replacement.suspected(0)
    await world.publish(1)  # it takes part: else it would go on with older weights
    assert world.engines[0].version == 1.0
    assert world.rollout.fleet.those(State.SERVING) == [0, 1]


async def test_what_its_own_engine_says_replaces_an_actor_that_lives():
    world = await played()
    world.engines[1].fault = "its engine died"
    world.rollout.replacement.answered(1, await world.engines[1].health())
    assert world.rollout.fleet.state(1) == State.STARTING
    assert world.actors.present == [0]
    await world.rollout.replacement.settled()
    assert world.rollout.fleet.state(1) == State.STALE
    assert world.actors.present == [0, 1]


async def test_newer_weights_stay_until_the_run_has_passed_them():
    world = await played()
    await world.publish(3)
    world.engines[1].is_dead = True
    world.rollout.replacement.lost(1, "killed")
    await world.rollout.replacement.settled()
    for version in (1, 2):  # of a run that goes back
        world.policy.disconnected()
        await world.publish(version)
        assert [engine.version for engine in world.engines] == [3.0, float(version)]
    await world.publish(3)
    await world.publish(4)
    assert [engine.version for engine in world.engines] == [4.0, 4.0]


async def test_a_wave_that_older_weights_are_asked_for_is_sampled_from_these():
    world = await played()
    await world.publish(3)
    world.version = 1
    await world.sample(2, together=True)
    assert [engine.version for engine in world.engines] == [1.0, 1.0]


async def test_the_run_goes_on_with_who_is_left_and_ends_with_the_last():
    world = await played(most_starts=0)
    world.engines[0].is_dead = True
    await world.sample(3, together=True)
    assert world.rollout.fleet.those(State.RETIRED) == [0]
    await world.publish(1)
    world.engines[1].is_dead = True
    for together in (True, False):
        with pytest.raises(RunError, match=r"no engine is left, job/rollout/1 .*too often"):
            await world.sample(3, together=together)
    with pytest.raises(RunError, match=r"no engine is left, job/rollout/1 .*too often"):
        await world.publish(2)


async def test_one_that_retired_comes_when_there_is_room_again():
    world = await played(again_s=0.01)
    world.has_room, world.engines[0].is_dead = False, True
    await world.sample(3, together=True)
    await world.publish(1)
    assert world.rollout.fleet.state(0) == State.RETIRED
    await asyncio.sleep(0.05)
    world.has_room = True
    await asyncio.sleep(0.05)
    assert world.rollout.fleet.state(0) == State.STALE
    assert world.num_starts > 2
    await world.publish(2)
    assert world.rollout.fleet.those(State.SERVING) == [0, 1]


async def test_what_an_engine_has_that_was_not_probed_is_published_again():
    world = await played()
    world.dice.chances = {"policy's death": 1.0}
    trainer = world.policy.actors.actors[0]._actor
    real = trainer.publish

    async def publish(*arguments):
        world.dice.chances = {}
        sent = await real(*arguments)
        world.dice.chances = {"policy's death": 1.0}  # before the probe
        return sent

    trainer.publish = publish
    with pytest.raises(ActorDied):
        await world.policy.publish(5)
    assert world.rollout.fleet.those(State.UPDATING) == [0, 1]
    trainer.publish, world.dice.chances = real, {}
    world.policy.disconnected()
    await world.publish(3)
    await world.sample(2, together=True)
    assert [engine.version for engine in world.engines] == [3.0, 3.0]


async def test_an_error_of_an_engine_that_is_well_is_raised():
    world = await played()

    async def admit(*_):
        raise ValueError("no such prompt")

    world.engines[0].admit = world.engines[1].admit = admit
    for together in (True, False):
        with pytest.raises(RunError, match="no such prompt"):
            await world.sample(2, together=together)
        world.check()
    assert world.num_starts == 0


@settings(max_examples=50, deadline=None)
@given(num_steps=st.integers(1, 4), num_replicas=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_on_shared_gpus_all_get_the_weights_anew(num_steps, num_replicas, seed):
    """Where a step ends, engines sleep without weights; what died comes when the GPU is theirs."""

    async def play():
        world = World(num_replicas, Dice(seed, {"death": 0.05, "fault": 0.03}), sleeps=True)
        await world.rollout.sleep(level=2)
        for step in range(num_steps):
            await world.publish(step)
            await world.sample(3, together=True)
            world.check()
            await world.rollout.sleep(level=2)
            assert not world.rollout.fleet.those(State.SERVING)
            assert not world.rollout.replacement._tasks, "others compute on its GPU"

    asyncio.run(play())


async def test_on_shared_gpus_nobody_comes_while_others_compute():
    world = await played(sleeps=True)
    world.rollout.replacement.lost(1, "killed")
    for _ in range(9):
        await asyncio.sleep(0)
    assert (world.num_starts, world.rollout.fleet.state(1)) == (0, State.DEAD)
    await world.sample(2, together=True)
    assert world.num_starts == 1


async def test_a_publication_to_one_that_joins_ends_although_the_call_is_over():
    world = await played()
    world.engines[1].is_dead = True
    world.rollout.replacement.lost(1, "killed")
    await world.rollout.replacement.settled()
    real, has_begun = world.engines[1].update_weights, asyncio.Event()

    async def update_weights(bucket):
        has_begun.set()
        for _ in range(9):
            await asyncio.sleep(0)
        await real(bucket)

    world.engines[1].update_weights = update_weights
    await with_engines(world.roles, 0, has_begun.wait)
    assert world.rollout.fleet.those(State.SERVING) == [0, 1]


@pytest.mark.parametrize(
    ("before", "event"),
    [
        (State.DEAD, "agreed"),
        (State.STARTING, "agreed"),
        (State.STALE, "agreed"),
        (State.UPDATING, "agreed"),  # nothing is acknowledged
        (State.STALE, "acknowledged"),
        (State.DEAD, "started"),
        (State.RETIRED, "started"),
        (State.RETIRED, "updates"),
        (State.STARTING, "updates"),
        (State.DEAD, "updates"),
    ],
)
def test_there_is_no_other_way_to_serve(before, event):
    fleet = Fleet(1)
    ways = {
        State.STALE: [],
        State.UPDATING: ["updates"],
        State.DEAD: ["died"],
        State.STARTING: ["died", "starts"],
        State.RETIRED: ["died", "retired"],
    }
    for step in ways[before]:
        getattr(fleet, step)(0)
    assert fleet.state(0) == before
    arguments = (0, 1) if event == "acknowledged" else (0,)
    with pytest.raises(AssertionError):
        getattr(fleet, event)(*arguments)
