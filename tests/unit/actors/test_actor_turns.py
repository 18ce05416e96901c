"""Roles on the same GPUs compute one after the other; the actors only say when they work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
import ray
from fake_actors import ComputingRank, FakeHandle, RecordingActor

from actors.cluster.role_handle import RoleHandle
from actors.cluster.turns import Turns
from actors.engines.replica_set import ReplicaSet
from actors.engines.rollout import RolloutReplica
from actors.engines.samples import Ending
from actors.ranks.free_ranks import FreeRanks
from actors.ranks.group import RankGroup
from actors.ranks.policy import PolicyGroup, PolicyRank
from actors.ranks.reference import ReferenceGroup, ReferenceRank
from actors.ranks.reward import RewardGroup, RewardRank
from actors.ranks.reward_worker import LoadedFunctions, RewardWorker
from actors.ranks.reward_workers import RewardWorkers
from actors.ranks.value import ValueGroup, ValueRank
from actors.weights.probe import EXACT
from actors.weights.sync_spec import Sent, SyncSpec
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.learners import LearnerConfig, ReferenceConfig
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import ActorDied, RunError
from rlhf_ray.metrics.spans import ASKED, PROCESS
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles.groups import RolloutGroup
from rlhf_ray.types import Prompt

PASS_S = 0.02


@pytest.fixture
def seen() -> list[str]:
    return []


@pytest.fixture
def roles(seen) -> list[RoleHandle]:
    """Policy and critic, of one rank each, on GPUs of their own."""
    return [
        RoleHandle(name, {f"job/{name}/0": FakeHandle(ComputingRank(name, seen, pass_s=PASS_S))})
        for name in ("policy", "value")
    ]


async def compute(role: RoleHandle, method: Callable[..., object]) -> list[object]:
    async with role.turn(timeout_s=5.0):
        return await role.call(method, timeout_s=5.0)()


async def update_all(roles: list[RoleHandle]) -> list[list[str]]:
    return await asyncio.gather(*(compute(role, ComputingRank.update) for role in roles))


async def test_roles_with_gpus_of_their_own_compute_side_by_side(roles, seen):
    assert await update_all(roles) == [["policy"], ["value"]]
    assert seen == ["policy begins", "value begins", "policy ends", "value ends"]


async def test_roles_on_the_same_gpus_wait_until_the_other_has_freed_its_memory(roles, seen):
    share(roles)
    assert await update_all(roles) == [["policy"], ["value"]]
    assert seen == [
        *("policy begins", "policy ends", "policy frees"),
        *("value begins", "value ends", "value frees"),
    ]


async def test_a_turn_that_failed_is_over(roles, seen):
    share(roles)
    with pytest.raises(RunError, match="no such model"):
        await compute(roles[0], ComputingRank.fail)
    assert await compute(roles[1], ComputingRank.update) == ["value"]


async def test_a_role_that_waits_for_its_turn_is_idle(roles):
    share(roles)
    PROCESS.take()
    await update_all(roles)
    asked = [one for one in PROCESS.take().ended if one.operation == "update"]
    first, second = sorted(asked, key=lambda one: one.start_ns)
    assert (first.labels, second.labels) == ({ASKED: "policy"}, {ASKED: "value"})
    assert first.end_ns <= second.start_ns


PLAN = UpdatePlan(minibatches=())
LEARNER, TIMEOUTS = LearnerConfig(), TimeoutConfig()


def policy(ranks: RoleHandle) -> PolicyGroup:
    return PolicyGroup(actors=ranks, config=LEARNER, timeouts=TIMEOUTS)


def critic(ranks: RoleHandle) -> ValueGroup:
    return ValueGroup(actors=ranks, config=LEARNER, timeouts=TIMEOUTS)


def reference(ranks: RoleHandle) -> ReferenceGroup:
    return ReferenceGroup(actors=ranks, config=ReferenceConfig(), timeouts=TIMEOUTS)


async def publish(ranks: RoleHandle) -> None:
    group, engine = policy(ranks), RecordingActor(RolloutReplica, logprobs=[])
    sync = SyncSpec(backend="object_store", gpus_per_replica=0, bucket_bytes=1, timeout_s=5.0)
    engines = ReplicaSet(
        RoleHandle("rollout", {"e": engine}), Ending(), timeout_s=5.0, sleeps=False, seats=1
    )
    group.publish_to(engines, sync, probe=[], limits=EXACT)
    await group.publish(1)


async def score(ranks: RoleHandle) -> None:
    config = RewardConfig.model_validate({"model": {"path": "rm"}, "functions": [{"path": "a:b"}]})
    loaded = LoadedFunctions(weights={"b": 1.0}, plain=("b",))
    worker = RoleHandle("reward_worker", {"w": RecordingActor(RewardWorker, score={"b": []})})
    model = RankGroup(actors=ranks, timeouts=TIMEOUTS)

    async def restart(died: ActorDied) -> None:
        raise died

    workers = RewardWorkers(worker, loaded, reward=config, timeouts=TIMEOUTS, restart=restart)
    reward = RewardGroup(config, TIMEOUTS, model=model, workers=workers)
    prompt = Prompt(prompt_id="p", token_ids_T=(1,), text="?")
    await reward.score(RolloutGroup(prompt=prompt, draw=0, summaries_G=(), rollouts=None))


@pytest.mark.parametrize(
    ("work", "turn"),
    [
        (lambda r: policy(r).logprobs([], ["policy"]), ["logprobs_by_model"]),
        (lambda r: policy(r).update([None], PLAN, 0.0), ["update"]),
        (lambda r: policy(r).restore("checkpoint"), ["restore"]),
        (publish, ["rendezvous", "connect", "publish", "logprobs_of"]),
        (lambda r: critic(r).values([]), ["values"]),
        (lambda r: critic(r).update([None], PLAN), ["update"]),
        (lambda r: reference(r).logprobs([]), ["logprobs"]),
        (score, ["score_with_model"]),
    ],
)
async def test_whatever_passes_a_model_does_so_in_its_turn(work, turn, monkeypatch):
    monkeypatch.setattr(ray, "put", lambda value: value)
    answers = {
        "rendezvous": ("h", 1),
        "publish": Sent(num_bytes=7),
        "update": {},
        "logprobs_of": [],
        "score_with_model": [],
    }
    rank = RecordingActor(PolicyRank, ValueRank, ReferenceRank, RewardRank, **answers)
    ranks = RoleHandle("role", {"job/role/0": rank})
    ranks.gpu_turns = turns = Turns()
    async with turns.turn("another role", at_most_s=5.0):
        waiting = asyncio.ensure_future(work(ranks))
        await asyncio.sleep(PASS_S)
        assert not rank.asked
    await waiting
    assert [method for method, *_ in rank.asked] == [*turn, "free_memory"]


def share(roles: list[RoleHandle]) -> None:
    turns = Turns()
    for role in roles:
        role.gpu_turns = turns


async def test_a_turn_that_does_not_end_is_named_by_who_waits_for_the_next(monkeypatch):
    monkeypatch.setattr("actors.cluster.turns.SLACK_S", 0.05)
    turns = Turns()
    async with turns.turn("policy", at_most_s=0.1):
        # Two wait: the second has the deadlines of both before it.
        started_s = asyncio.get_running_loop().time()
        second = asyncio.ensure_future(take(turns, "value", at_most_s=0.2))
        await asyncio.sleep(0)
        third = asyncio.ensure_future(take(turns, "reward", at_most_s=0.1))
        message = r"value's turn on the GPUs it shares: no answer from policy after 0 s .*0\.15 s"
        with pytest.raises(DeadlineError, match=message):
            await second
        with pytest.raises(DeadlineError, match=r"reward's turn .* from policy .*0\.35 s"):
            await third
        assert asyncio.get_running_loop().time() - started_s >= 0.35
    # Whoever gave up leaves nothing behind.
    await take(turns, "value", at_most_s=0.1)
    assert not turns.holders


async def take(turns: Turns, role: str, *, at_most_s: float) -> None:
    async with turns.turn(role, at_most_s=at_most_s):
        assert list(turns.holders.values()) == [role]


async def test_a_few_at_a_time_come_in_order_and_have_places_of_their_own():
    turns, done = Turns(2, on="the worker"), []

    async def work(number: int) -> None:
        async with turns.turn(f"draw {number}", at_most_s=5.0) as place:
            assert turns.holders[place] == f"draw {number}"
            assert len(turns.holders) <= 2
            await asyncio.sleep(0.01 if number else 0.05)
            done.append(number)

    working = [asyncio.ensure_future(work(number)) for number in range(5)]
    await asyncio.sleep(0)
    assert turns.are_waited_for
    working.pop(3).cancel()
    await asyncio.gather(*working)
    assert done == [1, 2, 4, 0]
    assert not turns.holders and not turns.are_waited_for


async def test_roles_compute_side_by_side_while_cores_are_free_and_in_the_order_they_came(
    roles, seen
):
    cores = Turns(4, on="the cores of its node")
    third = RoleHandle(
        "reference", {"r/0": FakeHandle(ComputingRank("reference", seen, pass_s=PASS_S))}
    )
    for role, number in zip([*roles, third], (3, 2, 1), strict=True):
        role.core_turns = [(cores, number)]
    await update_all([*roles, third])
    assert seen == [
        *("policy begins", "policy ends"),
        *("value begins", "reference begins", "value ends", "reference ends"),
    ], "reference waits behind value, and no memory is freed"
    assert not cores.holders


@pytest.mark.parametrize("seed", range(10))
async def test_whoever_gives_up_waiting_for_cores_keeps_none(seed):
    dice, turns, used = random.Random(seed), Turns(5), [0]

    async def work() -> None:
        number = dice.randint(1, 5)
        async with turns.turn("role", at_most_s=5.0, takes=number):
            used[0] += number
            assert used[0] <= 5
            try:
                await asyncio.sleep(dice.random() * 0.003)
            finally:
                used[0] -= number

    working = [asyncio.ensure_future(work()) for _ in range(40)]
    for task in working:
        if dice.random() < 0.4:
            asyncio.get_running_loop().call_later(dice.random() * 0.02, task.cancel)
    ended = await asyncio.gather(*working, return_exceptions=True)
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ended)
    assert not turns.holders and not turns.are_waited_for
    async with turns.turn("all", at_most_s=1.0, takes=5):
        assert len(turns.holders) == 5


@pytest.fixture
def scorer(seen) -> RoleHandle:
    """Two ranks that score."""
    ranks = [ComputingRank(f"rank {n}", seen, pass_s=PASS_S) for n in range(2)]
    return RoleHandle("reward", {f"job/reward/{n}": FakeHandle(r) for n, r in enumerate(ranks)})


async def score_groups(scorer: RoleHandle, number: int) -> list[str]:
    free = FreeRanks(scorer)
    return await asyncio.gather(
        *(free.call(ComputingRank.update, timeout_s=5.0)() for _ in range(number))
    )


def happened(seen: list[str], what: str) -> int:
    return sum(line.endswith(what) for line in seen)


async def test_what_is_scored_side_by_side_is_in_one_turn(scorer, seen):
    scorer.gpu_turns = turns = Turns()
    assert sorted(await score_groups(scorer, 5)) == ["rank 0"] * 2 + ["rank 1"] * 3
    assert seen[:2] == ["rank 1 begins", "rank 0 begins"]
    assert seen[-2:] == ["rank 0 frees", "rank 1 frees"]
    assert happened(seen, "frees") == 2, "once a rank, with the turn"
    assert not turns.holders


async def test_a_role_that_waits_comes_before_what_is_not_scored_yet(scorer, roles, seen):
    [critic] = roles[1:]
    share([scorer, critic])
    scoring = asyncio.ensure_future(score_groups(scorer, 6))
    await asyncio.sleep(PASS_S / 2)
    assert await compute(critic, ComputingRank.update) == ["value"]
    await scoring
    begins = [line for line in seen if line.endswith("begins")]
    assert begins.index("value begins") == 2, "behind the two that were being scored"
    assert happened(seen, "begins") == 7
    before = seen[: seen.index("value begins")]
    assert happened(before, "ends") == happened(before, "frees") == 2
    after = seen[seen.index("value frees") + 1 :]
    assert happened(after, "begins") == 4
    assert happened(after, "frees") == 2


async def test_a_group_that_fails_leaves_rank_and_turn_to_others(scorer, seen):
    scorer.gpu_turns = turns = Turns()
    free = FreeRanks(scorer)
    methods = [ComputingRank.fail, ComputingRank.update, ComputingRank.fail, ComputingRank.update]
    answers = await asyncio.gather(
        *(free.call(method, timeout_s=5.0)() for method in methods), return_exceptions=True
    )
    assert ["no such model" in str(answer) for answer in answers] == [True, False, True, False]
    assert not turns.holders
    waiting = asyncio.ensure_future(free.call(ComputingRank.update, timeout_s=5.0)())
    await asyncio.sleep(PASS_S / 2)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert not turns.holders
    assert (await score_groups(scorer, 1))[0].startswith("rank")


class Exclusive:
    """A rank that must never compute while one of another role does; it may fail.

    Attributes:
        inside: The roles that compute, of all ranks; freeing memory counts.
    """

    def __init__(self, role: str, inside: list[str], dice: random.Random) -> None:
        self.role, self.inside, self.dice = role, inside, dice

    async def update(self) -> str:
        return await self.compute(fails=self.dice.random() < 0.2)

    async def free_memory(self) -> None:
        await self.compute(fails=False)

    async def compute(self, *, fails: bool) -> str:
        self.inside.append(self.role)
        for _ in range(self.dice.randrange(4)):
            assert set(self.inside) == {self.role}
            await asyncio.sleep(0)
        self.inside.remove(self.role)
        if fails:
            raise ValueError("no such model")
        return self.role


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_fails_roles_compute_apart_and_all_are_served(seed):
    dice, inside = random.Random(seed), list[str]()
    sizes = {"policy": 1, "value": 2, "reward": 3}
    roles = {
        name: RoleHandle(
            name, {f"{name}/{n}": FakeHandle(Exclusive(name, inside, dice)) for n in range(size)}
        )
        for name, size in sizes.items()
    }
    share([*roles.values()])
    free = FreeRanks(roles["reward"])

    async def work() -> str:
        await asyncio.sleep(dice.random() * 0.02)
        if dice.random() < 0.7:
            return await free.call(Exclusive.update, timeout_s=5.0)()
        return (await compute(roles[dice.choice(["policy", "value"])], Exclusive.update))[0]

    done = await asyncio.gather(*(work() for _ in range(60)), return_exceptions=True)
    failed = [answer for answer in done if isinstance(answer, BaseException)]
    assert all("no such model" in str(error) for error in failed)
    assert 0 < len(failed) < len(done)
    assert not roles["policy"].gpu_turns.holders and not inside
