"""SFT: examples, batch, and the learner."""

from __future__ import annotations

from pydantic import PositiveInt, model_validator

from rlhf_ray.config.base import (
    Config,
    DataConfig,
    GroupConfig,
    JobConfig,
    LearnerConfig,
    NonNegativeInt,
)


class SftPlacementConfig(Config):
    """SFT has one role, the policy."""

    policy: GroupConfig = GroupConfig()


class SftEvalConfig(Config):
    """Loss on held-out examples before the first step, every `every` steps and after the last."""

    data: DataConfig = DataConfig()
    every: NonNegativeInt = 0


class SftConfig(JobConfig):
    """Supervised fine-tuning: next-token loss on the trained tokens of each example."""

    batch_size: PositiveInt = 32
    max_length: NonNegativeInt = 0
    data: DataConfig
    policy: LearnerConfig
    placement: SftPlacementConfig = SftPlacementConfig()
    eval: SftEvalConfig = SftEvalConfig()

    @model_validator(mode="after")
    def _model_and_data_are_named(self) -> SftConfig:
        if not self.policy.model.path:
            raise ValueError("policy.model.path must name a model")
        if not self.data.path:
            raise ValueError("data.path must name a data set")
        return self
