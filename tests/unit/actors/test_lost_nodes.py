"""A role whose node is gone is met as dead, also where files of that node are asked for first."""

from __future__ import annotations

from typing import Any

import pytest
from fake_actors import RecordingActor
from ray.exceptions import RayActorError

from actors.cluster.role_handle import RoleHandle
from actors.cluster.run_files import RunFiles
from actors.pool.pool import Pool
from actors.ranks.group import TrainedGroup
from actors.ranks.hosting import HostingRank
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.errors import ActorDied, RunError


class Files(RunFiles):
    """Of which the tasks of some kinds fail, each as often as it is named."""

    asked: list[str]
    fails: list[str]

    @classmethod
    def that_fail(cls, *fails: str) -> Files:
        files = cls()
        vars(files).update(asked=[], fails=list(fails))
        return files

    def _do(self, what: str) -> None:
        self.asked.append(what)
        if what in self.fails:
            self.fails.remove(what)
            raise RunError("files of the run: node 10.0.0.2 failed: TaskUnschedulableError")

    async def clear(self, folder: str) -> None:
        self._do("clear")

    async def fetch(self, folder: str, *, into: str = "") -> None:
        self._do("fetch")

    async def send(self, folder: str) -> None:
        self._do("send")

    async def export(self, *arguments: Any, **keywords: Any) -> None:
        self._do("export")


def group_of(files: Files, **answers: Any) -> TrainedGroup[Any]:
    handle = RoleHandle("policy", {"job/policy/0": RecordingActor(HostingRank, **answers)})
    return TrainedGroup(
        actors=handle,
        config=LearnerConfig(),
        timeouts=TimeoutConfig(),
        files=lambda: files,
        exports_with="tokenizer",
    )


GONE = RayActorError(error_msg="its node is gone")


@pytest.mark.parametrize("what", ["clear", "fetch", "export"])
async def test_a_save_on_a_node_that_is_gone_meets_the_death(what):
    with pytest.raises(ActorDied, match=r"policy.health: job/policy/0 died"):
        await group_of(Files.that_fail(what), health=GONE).save("run/checkpoint/policy")


async def test_so_does_what_is_to_be_restored():
    group = group_of(Files.that_fail("send"), health=GONE)
    with pytest.raises(ActorDied):
        await group.restore("run/checkpoint/policy")
    assert [asked for asked, *_ in group.actors.actors[0].asked] == ["health"]


async def test_what_is_cleared_of_a_role_that_is_well_is_cleared_again():
    files = Files.that_fail("clear")
    await group_of(files).save("run/checkpoint/policy")
    assert files.asked == ["clear", "clear", "fetch", "clear", "export", "clear"]


@pytest.mark.parametrize("fails", [("fetch",), ("clear", "clear")])
async def test_another_failure_of_a_role_that_is_well_is_raised(fails):
    with pytest.raises(RunError, match="TaskUnschedulableError") as caught:
        await group_of(Files.that_fail(*fails)).save("run/checkpoint/policy")
    assert not isinstance(caught.value, ActorDied)


async def test_the_result_of_a_job_is_no_exception():
    pool = Pool("pool", TimeoutConfig())
    pool.state.roles["policy"] = group_of(Files(), health=GONE).actors
    pool.files_of = lambda role: Files.that_fail("export")
    with pytest.raises(ActorDied, match=r"policy.health: job/policy/0 died"):
        await pool.finish(JobConfig(run_dir="runs/a"), "policy", "tokenizer")
