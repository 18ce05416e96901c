"""Whoever keeps a role's handle asks the actors that are there when it calls; fakes answer."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from fake_actors import FakeHandle
from ray.exceptions import ObjectLostError, RayActorError

from actors.cluster import deadline, role_handle
from actors.cluster.role_handle import RoleHandle, each_own
from actors.cluster.turns import Turns
from actors.ranks.group import RankGroup
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.errors import ActorDied, ResultsLost


class Rank:
    """The class of the actors, with Ray's way to call them."""

    def __init__(self, label: str) -> None:
        self.label = label

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        return Method(found) if name in ("where", "in_parts", "offload") else found

    def where(self, row: int, *, of: int = 1) -> str:
        return f"{self.label} has {row} of {of}"

    def in_parts(self) -> tuple[int, str]:
        return 3, self.label

    def offload(self) -> None:
        if self.label == "dead":
            raise RayActorError(error_msg="The actor died unexpectedly.")


class Method:
    def __init__(self, method: Any, num_returns: int = 1) -> None:
        self.method, self.num_returns = method, num_returns

    def options(self, *, num_returns: int) -> Method:
        return Method(self.method, num_returns)

    def remote(self, *arguments: Any, **keywords: Any) -> Any:
        if self.num_returns == 1:
            return self._answer(arguments, keywords)
        first, second = self.method(*arguments, **keywords)
        return asyncio.sleep(0, first), second

    async def _answer(self, arguments: Any, keywords: Any) -> Any:
        return self.method(*arguments, **keywords)


def ranks(*labels: str) -> dict[str, Rank]:
    return {f"job/policy/{number}": Rank(label) for number, label in enumerate(labels)}


@pytest.fixture
def policy() -> RoleHandle[Rank]:
    return RoleHandle("policy", ranks("a", "b"))


async def test_all_are_asked_or_one(policy):
    assert await policy.call(Rank.where, timeout_s=5)(7, of=9) == ["a has 7 of 9", "b has 7 of 9"]
    assert await policy.call(Rank.where, only=1, timeout_s=5)(2) == ["b has 2 of 1"]


async def test_an_argument_may_be_each_ranks_own(policy):
    where = policy.call(Rank.where, timeout_s=5)
    assert await where(each_own([7, 8]), of=9) == ["a has 7 of 9", "b has 8 of 9"]
    policy.away.add(0)
    assert await where(each_own([7, 8])) == ["b has 8 of 1"]


async def test_the_second_part_of_an_answer_is_a_reference(policy):
    assert await policy.call_in_parts(Rank.in_parts, timeout_s=5)() == [(3, "a"), (3, "b")]


async def test_a_group_that_keeps_its_handle_asks_those_that_came_after_a_death(policy):
    policy.replace(ranks("a", "dead"), spec="ranks")
    group: RankGroup[Any] = RankGroup(actors=policy, timeouts=TimeoutConfig(), leaves=True)
    with pytest.raises(ActorDied, match=r"policy\.offload: job/policy/1 died") as caught:
        await group.offload()
    assert (caught.value.role, caught.value.index) == ("policy", 1)
    before = policy.incarnation
    policy.replace(ranks("c", "d"), spec="ranks")
    await group.offload()
    assert policy.incarnation == before + 1
    assert await group.actors.call(Rank.where, only=0, timeout_s=5)(1) == ["c has 1 of 1"]


async def test_what_was_hosted_is_gone_with_the_actors(policy):
    policy.hosted = "a model"
    policy.replace(ranks("c"), spec="ranks")
    assert policy.hosted is None
    assert len(policy) == 1


def test_a_handle_that_travels_keeps_all_but_its_turns():
    sent: RoleHandle[Any] = RoleHandle("policy", {"p/0": "actor"})
    sent.replace({"p/0": "another"}, spec=SimpleNamespace())
    sent.gpu_turns = Turns()
    sent.core_turns, sent.threads = [(Turns(2), 1)], 2
    arrived = pickle.loads(pickle.dumps(sent))
    assert (arrived.name, arrived.names, arrived.actors) == ("policy", ["p/0"], ["another"])
    assert (arrived.spec, arrived.incarnation) == (sent.spec, sent.incarnation)
    assert arrived.gpu_turns is None
    assert (arrived.core_turns, arrived.threads) == ((), 2)


class Peer:
    """A rank that waits for another one, which is stopped."""

    def __init__(self, *, is_stopped: bool) -> None:
        self.is_stopped = is_stopped

    async def update(self) -> None:
        await asyncio.sleep(60)

    async def health(self) -> None:
        if self.is_stopped:
            await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("stopped", "said"),
    [
        ([1], r"no answer from job/policy/1 after .*, nor any sign of life: killed"),
        ([], r"no answer from job/policy/0, job/policy/1, job/policy/2 after .*: killed"),
    ],
)
async def test_of_ranks_that_wait_for_a_stopped_one_only_that_is_named(stopped, said, monkeypatch):
    killed: list[Any] = []
    monkeypatch.setattr(role_handle.ray, "kill", killed.append)
    monkeypatch.setattr(role_handle, "LIFE_S", 0.1)
    peers = {
        f"job/policy/{number}": FakeHandle(Peer(is_stopped=number in stopped))
        for number in range(3)
    }
    policy: RoleHandle[Peer] = RoleHandle("policy", peers)
    with pytest.raises(ActorDied, match=said) as caught:
        await policy.call(Peer.update, timeout_s=0.05)()
    assert caught.value.index == (stopped or [0])[0]
    assert killed == list(peers.values()), "what they do together hangs as a whole"


async def test_one_actor_comes_in_the_place_of_another_and_the_others_stay(policy):
    first, _ = policy.actors
    new = policy.successor({"job/policy/1": Rank("c")})
    policy.give_way_to(new, [1])
    assert policy.actors[0] is first
    assert await policy.call(Rank.where, timeout_s=5)(1) == ["a has 1 of 1", "c has 1 of 1"]
    assert policy.incarnation == 1
    assert policy.of([1]).names == ["job/policy/1"]


async def test_who_is_away_is_not_asked(policy):
    policy.away.add(0)
    assert await policy.call(Rank.where, timeout_s=5)(1) == ["b has 1 of 1"]
    assert pickle.loads(pickle.dumps(policy.of([]))).present == []
    policy.away.add(1)
    assert await policy.call(Rank.where, timeout_s=5)(1) == []


async def test_peers_of_one_with_nothing_to_read_are_killed(monkeypatch):
    """They may wait for it in a collective, for as long as that may take."""
    killed: list[Any] = []
    monkeypatch.setattr(role_handle.ray, "kill", killed.append)
    monkeypatch.setattr(deadline, "DEATH_S", 0.05)
    peers = ranks("a", "b")

    async def has_nothing() -> None:
        raise ObjectLostError("ab12", b"", "")

    with pytest.raises(ResultsLost):
        await RoleHandle("policy", peers).answers(
            [asyncio.sleep(60), has_nothing()], "update", timeout_s=5.0
        )
    assert killed == [peers["job/policy/0"]]
