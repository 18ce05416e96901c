"""The jobs by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from rlhf_ray.config.base import JobConfig, RunConfig
from rlhf_ray.config.online import GrpoConfig, OnlineConfig, PpoConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SftConfig, SupervisedConfig

# A job as it is: all of them have data.
AnyJob: TypeAlias = OnlineConfig | SupervisedConfig

JOBS: Mapping[str, type[JobConfig]] = {
    "sft": SftConfig,
    "rm": RmConfig,
    "dpo": DpoConfig,
    "ppo": PpoConfig,
    "grpo": GrpoConfig,
    "sample": SampleConfig,
}
# Of several jobs, and none of them.
PIPELINE = "pipeline"


def job_name(config: RunConfig) -> str:
    """The name of a configuration's job."""
    return next((name for name, cls in JOBS.items() if type(config) is cls), PIPELINE)
