"""Roles on the same GPUs compute one after the other; the actors only say when they work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from actors.cluster.actor_set import ActorSet
from rlhf_ray.errors import RunError

PASS_S = 0.02


class Method:
    def __init__(self, work: Callable[[], object]) -> None:
        self.work = work

    def remote(self, *arguments: object) -> object:
        return self.work()


class Actor:
    """One rank; what it does is written down when it begins and when it is done."""

    def __init__(self, role: str, seen: list[str]) -> None:
        self.role, self.seen = role, seen
        self.update = Method(self._update)
        self.fail = Method(self._fail)
        self.free_memory = Method(self._free_memory)

    async def _update(self) -> str:
        self.seen.append(f"{self.role} begins")
        await asyncio.sleep(PASS_S)
        self.seen.append(f"{self.role} ends")
        return self.role

    async def _fail(self) -> None:
        raise ValueError("no such model")

    async def _free_memory(self) -> None:
        self.seen.append(f"{self.role} frees")


@pytest.fixture
def seen() -> list[str]:
    return []


@pytest.fixture
def roles(seen) -> list[ActorSet]:
    """Policy and critic, of one rank each, on GPUs of their own."""
    names = ("policy", "value")
    return [ActorSet(name, [f"job/{name}/0"], [Actor(name, seen)]) for name in names]


async def update_all(roles: list[ActorSet]) -> list[list[str]]:
    return await asyncio.gather(*(role.compute("update", timeout_s=5.0) for role in roles))


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
        await roles[0].compute("fail", timeout_s=5.0)
    assert await roles[1].compute("update", timeout_s=5.0) == ["value"]


async def test_a_role_that_waits_for_its_turn_is_idle(roles):
    share(roles)
    for role in roles:
        role.busy.take_idle_s()
    await update_all(roles)
    assert roles[1].busy.take_idle_s() > PASS_S / 2


def share(roles: list[ActorSet]) -> None:
    lock = asyncio.Lock()
    for role in roles:
        role.turns = lock
