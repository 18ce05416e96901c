"""The configurations of jobs by the jobs' names, and of pipelines of them on one pool.

What each job does is in `rlhf_ray.jobs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from rlhf_ray.config.base import Config, LocalPath
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.online import GrpoConfig, OnlineConfig, PpoConfig
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig, SupervisedConfig


class StageConfig(Config):
    """One job.

    A model's `path: stage:NAME` is the result of an earlier stage; any other path may be
    `stage:NAME/FILE`, a file in that stage's folder.

    Attributes:
        name: Of the stage and of its folder below the pipeline's.
        config: A YAML file with the job's configuration, or the name of a ready one; empty where
            `set` has all of it.
        set: Keys and values laid over that file.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w-]*$")]
    job: Literal["sft", "rm", "dpo", "ppo", "grpo", "sample"]
    config: LocalPath = ""
    set: dict[str, Any] = {}


class PipelineConfig(RunConfig):
    """Stages on one pool: SFT, reward model and PPO, say, each from what another left in memory.

    `seed`, `wandb`, `timeouts`, `failures` and `placement` are laid over every stage's file where
    they are given; a stage's own `set` wins over them.

    Attributes:
        run_dir: Has a folder for each stage; empty for `runs/pipeline-<config>-<time>`.
        resume: `auto` skips stages whose result exists and goes on with the one that was left.
        placement: Of all stages: a role has one shape in a pool.
    """

    job = "pipeline"

    placement: PlacementConfig = PlacementConfig()
    stages: Annotated[list[StageConfig], Field(min_length=1)]

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                yield f"stages must have names of their own, got {name!r} twice"


# A job as it is: all of them have data.
AnyJob: TypeAlias = OnlineConfig | SupervisedConfig

JOB_CONFIGS: Mapping[str, type[AnyJob]] = {
    cls.job: cls for cls in (SftConfig, RmConfig, DpoConfig, PpoConfig, GrpoConfig, SampleConfig)
}
# Of several jobs, and none of them.
PIPELINE = PipelineConfig.job
