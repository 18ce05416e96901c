"""What is planned, a job by itself or the stages of a pipeline, and what stages leave to others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlhf_ray.config.base import GroupConfig
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.tools.stages import Stage
from rlhf_ray.learner.deepspeed.memory import ModelRank
from rlhf_ray.planning.needs import RoleNeed


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """One job.

    Attributes:
        name: Of the stage; empty for a job by itself.
        sources: Stages whose results it starts from.
    """

    name: str = ""
    config: AnyJob
    sources: frozenset[str] = frozenset()

    @classmethod
    def of_stage(cls, stage: Stage) -> PlannedJob:
        """With the models that can be read before anything has run."""
        return cls(name=stage.name, config=stage.rooted, sources=stage.sources)


def groups_of(jobs: Sequence[PlannedJob]) -> dict[str, GroupConfig]:
    """The groups of all jobs together."""
    return {role: group for job in jobs for role, group in job.config.groups.items()}


@dataclass(frozen=True, kw_only=True)
class HeldResult:
    """One stage's weights, in the object store of its ranks' nodes until the last user has them.

    Attributes:
        role: Whose ranks keep them, each an equal share.
        bytes: Of all shares together.
        used_by: Later stages that start from it.
    """

    stage: str
    role: str
    bytes: int
    used_by: tuple[str, ...]


def held_results(
    jobs: Sequence[PlannedJob], needs: Sequence[Sequence[RoleNeed]]
) -> Iterator[HeldResult]:
    """Every result that a later stage starts from, of jobs in their order with their roles."""
    for job, roles in zip(jobs, needs, strict=True):
        users = tuple(later.name for later in jobs if job.name in later.sources)
        for need in roles if users else ():
            if need.role == job.config.trained_role and isinstance(need.model, ModelRank):
                size = need.model.num_parameters * need.model.bytes_each
                yield HeldResult(stage=job.name, role=need.role, bytes=size, used_by=users)
