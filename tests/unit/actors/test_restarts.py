"""Roles are started again once for all that met a death, and no more often than is allowed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleSpec
from actors.pool.budget import Budget
from actors.pool.restart import Restarts
from actors.ranks.rank import Rank
from rlhf_ray.config.fault_tolerance import ActorFailureConfig, TimeoutConfig
from rlhf_ray.errors import ActorDied, RunError

QUICK = ActorFailureConfig(restarts=3, backoff_s=0.0)


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def death_of(handle: RoleHandle, *, incarnation: int | None = None) -> ActorDied:
    died = ActorDied.of(
        f"job/{handle.name}/0 died", role=handle.name, index=0, operation="score", age_s=1.0
    )
    died.incarnation = handle.incarnation if incarnation is None else incarnation
    return died


class Roles(dict[str, RoleHandle]):
    """Of which each restart takes a moment, and fails as `failures` say."""

    def __init__(self, *names: str, failures: Sequence[Exception | None] = ()) -> None:
        super().__init__({name: RoleHandle(name, {f"job/{name}/0": None}) for name in names})
        self.restarted: list[str] = []
        self.failures = list(failures)

    async def restart(self, role: str, ranks: Sequence[int] | None = None) -> None:
        self.restarted.append(role if ranks is None else f"{role}/{ranks}")
        await asyncio.sleep(0.01)
        if self.failures and (error := self.failures.pop(0)):
            raise error
        self[role].give_way_to(self[role].successor({}))


async def test_all_that_met_a_death_wait_for_one_restart():
    roles = Roles("reference", "reward")
    restarts = Restarts(QUICK, roles.restart)
    died = death_of(roles["reference"])
    await asyncio.gather(*(restarts.after(died, roles) for _ in range(5)))
    assert roles.restarted == ["reference"]
    await restarts.after(died, roles)
    assert roles.restarted == ["reference"], "the actors that died are replaced already"
    await restarts.after(death_of(roles["reference"]), roles)
    assert roles.restarted == ["reference"] * 2


async def test_who_is_cancelled_takes_nothing_from_others():
    roles = Roles("reward")
    restarts = Restarts(QUICK, roles.restart)
    died = death_of(roles["reward"])
    first, second = (asyncio.create_task(restarts.after(died, roles)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()
    assert roles.restarted == ["reward"]
    assert roles["reward"].incarnation == 1


async def test_a_role_that_dies_while_it_starts_is_started_again():
    roles = Roles("reward")
    roles.failures = [death_of(roles["reward"], incarnation=7), None]
    await Restarts(QUICK, roles.restart).after(death_of(roles["reward"]), roles)
    assert roles.restarted == ["reward"] * 2


@pytest.mark.parametrize("which", ["another role's death", "no model"])
async def test_what_else_keeps_it_from_starting_is_raised(which):
    roles = Roles("reward", "policy")
    error = death_of(roles["policy"]) if which != "no model" else RunError(which)
    roles.failures = [error]
    restarts = Restarts(QUICK, roles.restart)
    with pytest.raises(RunError) as caught:
        await restarts.after(death_of(roles["reward"]), roles)
    assert caught.value is error
    await restarts.after(death_of(roles["reward"]), roles)
    assert roles.restarted == ["reward"] * 2


async def test_the_last_death_says_how_often_it_was_tried():
    roles = Roles("reward")
    restarts = Restarts(QUICK, roles.restart)
    for _ in range(3):
        await restarts.after(death_of(roles["reward"]), roles)
    with pytest.raises(ActorDied, match=r"job/reward/0 died .*started again 3 times") as caught:
        await restarts.after(death_of(roles["reward"]), roles)
    assert (caught.value.role, caught.value.index) == ("reward", 0)
    assert restarts.budget.num_restarts == 3


async def test_without_restarts_a_death_is_as_it_was():
    roles = Roles("reward")
    died = death_of(roles["reward"])
    restarts = Restarts(ActorFailureConfig(restarts=0), roles.restart)
    with pytest.raises(ActorDied) as caught:
        await restarts.after(died, roles)
    assert caught.value is died
    with pytest.raises(ActorDied):
        await restarts.after(death_of(RoleHandle("unknown", {"u": None})), roles)


async def test_what_runs_a_user_s_code_is_started_again_as_often_as_it_takes():
    """But where it dies while it starts, that counts."""
    roles, none = Roles("worker"), ActorFailureConfig(restarts=0)
    roles["worker"].spec = RoleSpec(actor_class=Rank, runs_user_code=True)
    restarts = Restarts(none, roles.restart)
    for number in range(5):
        await restarts.after(death_of(roles["worker"]), roles)
        assert roles["worker"].incarnation == number + 1
    assert restarts.budget.num_restarts == 0
    roles.failures = [death_of(roles["worker"], incarnation=9)]
    with pytest.raises(ActorDied):
        await restarts.after(death_of(roles["worker"]), roles)
    assert len(roles.restarted) == 6


@given(
    served_s=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50), st.floats(0, 50)), max_size=30),
    restarts=st.integers(0, 10),
    stable_s=st.floats(1, 40),
)
def test_a_role_has_so_many_restarts_and_all_again_once_it_has_served(served_s, restarts, stable_s):
    """Of three times the first alone is service: then a call hangs, and then a start."""
    clock = Clock()
    config = ActorFailureConfig(restarts=restarts, backoff_s=1.0, stable_s=stable_s)
    budget = Budget(config, clock=clock)
    num_spent = 0
    for well_s, call_s, start_s in served_s:
        ready_s = clock.now_s
        clock.now_s += well_s + call_s
        budget.spend("another")
        if clock.now_s - call_s - ready_s >= stable_s:
            num_spent = 0
        with budget.starting("reward", age_s=call_s):
            for _ in range(2):  # the first one dies in its start
                wait_s = budget.spend("reward")
                clock.now_s += start_s
                if num_spent == restarts:
                    assert wait_s is None
                    continue
                assert wait_s == (0 if num_spent == 0 else 2.0 ** min(num_spent - 1, 6))
                num_spent += 1


@pytest.mark.parametrize("hangs", ["in its start", "in its first call"])
async def test_a_role_that_hangs_again_and_again_ends_the_run(hangs):
    """However long a deadline is beside the time after which a role is stable."""
    roles, clock = Roles("reward"), Clock()
    config = ActorFailureConfig(restarts=3, backoff_s=0.0, stable_s=600.0)

    async def restart(role, ranks=None):
        await roles.restart(role, ranks)
        if hangs == "in its start":
            clock.now_s += 900.0
            died = death_of(roles[role])
            died.age_s = 900.0
            raise died

    restarts = Restarts(config, restart)
    restarts.budget.clock = clock
    with pytest.raises(ActorDied, match="has not served for 600 s"):
        for _ in range(9):
            clock.now_s += 1800.0
            died = death_of(roles["reward"])
            died.age_s = 1800.0
            await restarts.after(died, roles)
    assert roles.restarted == ["reward"] * 3


def test_no_pause_is_longer_than_what_a_change_is_waited_for():
    timeouts = TimeoutConfig()
    for number in (0, 1, 5, 20):
        config = ActorFailureConfig(restarts=number)
        restarts = Restarts(config, Roles().restart)
        pauses_s = [restarts.budget.spend("reward") for _ in range(number)]
        assert max([0.0, *pauses_s]) <= 64 * config.backoff_s
        starts_s = number * (2 * timeouts.place_s + timeouts.start_s)
        assert sum(pauses_s) + starts_s <= restarts.longest_s(timeouts)


async def test_engines_are_replaced_one_by_one_each_with_a_budget_of_its_own():
    roles = Roles("rollout")
    restarts = Restarts(ActorFailureConfig(restarts=2, backoff_s=0.0), roles.restart)

    def death(index):
        return ActorDied.of("died", role="rollout", index=index, operation="generate", age_s=0.0)

    await asyncio.gather(*(restarts.replace(death(index)) for index in (0, 1, 1)))
    assert sorted(roles.restarted) == ["rollout/[0]", "rollout/[1]"]
    await restarts.replace(death(1))
    with pytest.raises(ActorDied, match="rollout/1 was started again 2 times") as caught:
        await restarts.replace(death(1))
    assert (caught.value.role, caught.value.index) == ("rollout", 1)
    await restarts.replace(death(0))
    assert roles.restarted[2:] == ["rollout/[1]", "rollout/[0]"]
    assert restarts.longest_s(TimeoutConfig(place_s=1.0, start_s=10.0)) == 2 * 12.0


async def test_what_is_under_way_for_a_role_ends_with_it():
    roles, ended = Roles("reward", "reward_worker", "rollout"), []

    async def restart(role, ranks=None):
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            ended.append((role, ranks))
            raise

    restarts = Restarts(QUICK, restart)
    engine = ActorDied.of("died", role="rollout", index=1, operation="generate", age_s=0.0)
    waits = [
        asyncio.create_task(restarts.after(death_of(roles["reward"]), roles)),
        asyncio.create_task(restarts.after(death_of(roles["reward_worker"]), roles)),
        asyncio.create_task(restarts.replace(engine)),
    ]
    await asyncio.sleep(0.01)
    for role in ("reward", "rollout"):
        await restarts.end(role)
    assert ended == [("reward", None), ("rollout", [1])]
    met = await asyncio.gather(*waits, return_exceptions=True)
    assert [str(error) for error in met] == [
        "reward was ended while it was started again",
        "None",
        "rollout/1 was ended while it was started again",
    ]
