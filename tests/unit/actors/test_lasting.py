"""A role's calls outlive its actors where it has no state; else whoever asks hears of the loss."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.cluster.role_handle import RoleHandle
from actors.pool.restart import Restarts
from actors.roles.lasting import (
    Lasting,
    LastingPolicy,
    LastingTrained,
    or_lost,
    repeated,
)
from rlhf_ray.config.fault_tolerance import ActorFailureConfig
from rlhf_ray.errors import ActorDied, StateLost


class Resident:
    """A pool in which roles are started again at once."""

    def __init__(self) -> None:
        self.restarts = Restarts(ActorFailureConfig(restarts=9, backoff_s=0.0), self.restart)
        self.restarted: list[str] = []
        self.again: list[str] = []
        roles = {name: RoleHandle(name, {name: None}) for name in ("reward", "policy")}
        self.state = type("State", (), {"roles": roles})

    async def restart(self, role: str, ranks: object = None) -> None:
        self.restarted.append(role)
        handle = self.state.roles[role]
        handle.give_way_to(handle.successor({}))

    async def load_again(self, role: str) -> None:
        self.again.append(role)


class Role:
    """Dies with the calls that `dies` counts down to."""

    def __init__(self, actors: RoleHandle[Any], *dies: str) -> None:
        self.actors, self.dies, self.asked = actors, list(dies), []
        self.leaves = False

    async def _ask(self, what: str, role: str = "") -> str:
        self.asked.append(what)
        await asyncio.sleep(0)
        if self.dies and self.dies[0] == what:
            self.dies.pop(0)
            died = ActorDied.of("died", role=self.actors.name, index=0, operation=what, age_s=0.0)
            died.incarnation = self.actors.incarnation
            raise died
        return what

    async def score(self, rows: int, *, of: int) -> str:
        return await self._ask("score")

    async def restore(self, folder: str) -> None:
        await self._ask("restore")

    def disconnected(self) -> None:
        self.asked.append("disconnected")

    @property
    def weights(self) -> dict[str, float]:
        return {"score": 1.0}


@pytest.fixture
def pool() -> Any:
    return Resident()


async def test_a_call_of_a_role_without_a_state_is_repeated(pool):
    role = Role(pool.state.roles["reward"], "score", "score")
    lasting = Lasting(role, pool)
    assert await lasting.score(3, of=4) == "score"
    assert (role.asked, pool.restarted) == (["score"] * 3, ["reward"] * 2)
    assert lasting.weights == {"score": 1.0}
    lasting.leaves = True
    assert role.leaves


async def test_another_role_s_death_is_no_less_met(pool):
    role = Role(pool.state.roles["policy"], "score")
    assert await repeated(pool, lambda: role.score(1, of=1)) == "score"
    assert pool.restarted == ["policy"]


async def test_a_trained_role_is_lost_until_it_is_restored(pool):
    role = Role(pool.state.roles["policy"], "score")
    lasting = LastingTrained(role, pool)
    for _ in range(2):
        with pytest.raises(StateLost) as caught:
            await lasting.score(3, of=4)
        assert caught.value.role == "policy"
    assert role.asked == ["score"], "who has lost its state is not asked"
    await lasting.restore("folder")
    assert await lasting.score(3, of=4) == "score"
    assert pool.restarted == ["policy"]


async def test_a_death_that_only_others_have_met_is_not_overlooked(pool):
    lasting = LastingTrained(Role(pool.state.roles["policy"]), pool)
    await pool.restart("policy")
    with pytest.raises(StateLost):
        await lasting.score(3, of=4)


async def test_a_role_that_dies_while_it_is_restored_is_lost_still(pool):
    role = Role(pool.state.roles["policy"], "restore")
    lasting = LastingTrained(role, pool)
    with pytest.raises(StateLost):
        await lasting.restore("folder")
    with pytest.raises(StateLost):
        await lasting.score(3, of=4)
    await lasting.restore("folder")
    assert await lasting.score(3, of=4) == "score"


async def test_a_start_is_loaded_once_more_unless_the_actors_are_as_new(pool):
    lasting = LastingTrained(Role(pool.state.roles["policy"]), pool)
    await lasting.restore("")
    assert pool.again == ["policy"]
    await pool.restart("policy")
    await lasting.restore("")
    assert pool.again == ["policy"]
    await lasting.score(3, of=4)


async def test_a_policy_that_begins_again_has_no_way_to_the_engines(pool):
    """It is alive, and loads its model anew, as the critic died."""
    role = Role(pool.state.roles["policy"])
    await LastingPolicy(role, pool).restore("")
    assert (pool.again, role.asked) == (["policy"], ["disconnected"])


async def test_what_cannot_be_repeated_says_so(pool):
    role = Role(pool.state.roles["policy"], "score")
    with pytest.raises(StateLost):
        await or_lost(pool, lambda: role.score(1, of=1))
    assert role.asked == ["score"]
