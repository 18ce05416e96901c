"""Who brings another engine is told what became of the last one, and by which job."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.cluster.role_handle import RoleHandle
from actors.engines.fleet import Fleet
from actors.engines.replacement import Replacement
from rlhf_ray.errors import ActorDied, RunError


class Replacing:
    """Two engines, of which nothing comes back."""

    def __init__(self) -> None:
        self.actors: RoleHandle[Any] = RoleHandle("rollout", {"e/0": object(), "e/1": object()})
        self.ages_s: list[float] = []
        self.replacement = Replacement(
            self.actors, Fleet(2), replace=self.replace, again_s=0.02, change_s=5.0
        )

    async def replace(self, died: ActorDied) -> None:
        self.ages_s.append(died.age_s)
        raise RunError("there is no room")


@pytest.fixture
async def world() -> Any:
    world = Replacing()
    yield world
    world.actors.detach()


async def test_the_age_of_the_call_that_met_a_death_is_told_once(world):
    """A restart counts what was served before it; a later try has nothing to do with that call."""
    died = ActorDied.of("late", role="rollout", index=0, operation="finished", age_s=1800.0)
    assert await world.replacement.blames(0, world.actors.actors[0], died)
    await asyncio.sleep(0.05)
    assert world.ages_s[:2] == [1800.0, 0.0]


async def test_what_one_job_waits_with_is_not_done_in_the_next(world):
    world.replacement.lost(0, "killed")
    await asyncio.sleep(0.01)
    assert len(world.ages_s) == 1
    world.actors.detach()
    await asyncio.sleep(0.05)
    assert len(world.ages_s) == 1, "the engine may be well in the next job"


async def test_a_next_job_s_replacement_ends_that_of_the_one_before(world):
    world.replacement.lost(0, "killed")
    await asyncio.sleep(0.01)
    Replacement(world.actors, Fleet(2), change_s=5.0)
    await asyncio.sleep(0.05)
    assert len(world.ages_s) == 1
