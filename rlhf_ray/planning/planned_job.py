"""What is planned: a job by itself, or one of the stages that a pool runs one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.config.base import GroupConfig, JobConfig
from rlhf_ray.config.stages import Stage
from rlhf_ray.config.supervised import SupervisedConfig


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """One job.

    Attributes:
        name: Of the stage; empty for a job by itself.
        sources: Stages whose results it starts from.
    """

    name: str = ""
    config: JobConfig
    sources: frozenset[str] = frozenset()

    @classmethod
    def of_stage(cls, stage: Stage) -> PlannedJob:
        """With the models that can be read before anything has run."""
        return cls(name=stage.name, config=stage.rooted, sources=stage.sources)

    @property
    def result_role(self) -> str:
        """The role that holds what the job leaves."""
        config = self.config
        return config.trained_role if isinstance(config, SupervisedConfig) else "policy"


def groups_of(jobs: Sequence[PlannedJob]) -> dict[str, GroupConfig]:
    """The groups of all jobs together."""
    return {role: group for job in jobs for role, group in job.config.groups.items()}
