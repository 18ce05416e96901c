"""The configurations of jobs by the jobs' names; what each does is in `rlhf_ray.jobs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from rlhf_ray.config.online import GrpoConfig, OnlineConfig, PpoConfig
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SftConfig, SupervisedConfig

# A job as it is: all of them have data.
AnyJob: TypeAlias = OnlineConfig | SupervisedConfig

JOB_CONFIGS: Mapping[str, type[AnyJob]] = {
    cls.job: cls for cls in (SftConfig, RmConfig, DpoConfig, PpoConfig, GrpoConfig, SampleConfig)
}
# Of several jobs, and none of them.
PIPELINE = PipelineConfig.job
