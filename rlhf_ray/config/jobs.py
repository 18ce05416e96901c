"""The jobs by their names."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_ray.config.base import JobConfig
from rlhf_ray.config.online import GrpoConfig, PpoConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SftConfig

JOBS: Mapping[str, type[JobConfig]] = {
    "sft": SftConfig,
    "rm": RmConfig,
    "dpo": DpoConfig,
    "ppo": PpoConfig,
    "grpo": GrpoConfig,
    "sample": SampleConfig,
}
