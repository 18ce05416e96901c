"""A pipeline goes on where a role dies between two of its stages."""

from __future__ import annotations

from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.pool.restart import Restarts
from launch import job
from rlhf_ray.config.fault_tolerance import ActorFailureConfig
from rlhf_ray.errors import ActorDied


class Resident:
    """A pool whose policy has died when it is first asked to give a result up."""

    def __init__(self) -> None:
        self.restarts = Restarts(ActorFailureConfig(), self.restart)
        self.state = SimpleNamespace(roles={"policy": RoleHandle("policy", {"p/0": None})})
        self.done: list[str] = []

    def place(self, groups: Any) -> None:
        self.done.append("place")

    async def restart(self, role: str, ranks: object = None) -> None:
        self.done.append(f"restart {role}")

    async def want(self, folders: Any) -> None:
        self.done.append("want")
        if self.done.count("want") == 1:
            raise ActorDied.of("gone", role="policy", index=0, operation="drop", age_s=0.0)


async def test_who_holds_a_result_of_the_stage_before_may_die(monkeypatch):
    pool = Resident()

    @asynccontextmanager
    async def open_pool(config):
        yield pool

    async def run_on(pool, prepared):
        pool.done.append("run")

    async def nothing(*arguments):
        pass

    for name in ("check_nodes", "start_all"):
        monkeypatch.setattr(job, name, nothing)
    for name in ("groups_of", "role_specs", "results_needed", "prepare"):
        monkeypatch.setattr(job, name, lambda *arguments: {})
    monkeypatch.setattr(job, "open_pool", open_pool)
    monkeypatch.setattr(job, "run_on", run_on)
    monkeypatch.setattr(job, "run_folder", nullcontext)
    stage: Any = SimpleNamespace(
        name="first", job="sft", config=SimpleNamespace(run_dir="runs/a"), rooted=None
    )
    config: Any = None
    seconds: dict[str, float] = {}
    await job._run_left(config, [stage], {}, seconds)
    assert pool.done == ["place", "want", "restart policy", "want", "run"]
    assert [*seconds] == ["first"]
