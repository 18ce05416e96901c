"""Whoever keeps a role's handle asks the actors that are there when it calls; fakes answer."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.cluster.role_handle import RoleHandle
from actors.cluster.turns import Turns
from actors.ranks.group import RankGroup
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.errors import ActorDied


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
    sent.replace({"p/0": "another"}, spec=SimpleNamespace(beside=""))
    sent.gpu_turns = Turns()
    sent.core_turns, sent.threads = [(Turns(2), 1)], 2
    arrived = pickle.loads(pickle.dumps(sent))
    assert (arrived.name, arrived.names, arrived.actors) == ("policy", ["p/0"], ["another"])
    assert (arrived.spec, arrived.incarnation) == (sent.spec, sent.incarnation)
    assert arrived.gpu_turns is None
    assert (arrived.core_turns, arrived.threads) == ((), 2)
