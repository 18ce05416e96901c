"""Evaluation on held-out data."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import PositiveInt

from rlhf_ray.config.base import Config, NonNegativeFloat, NonNegativeInt
from rlhf_ray.config.data import DataConfig


class EvalConfig(Config):
    """Evaluation on held-out prompts: before the first, every `every` and after the last step.

    Attributes:
        samples_per_prompt: k; `eval/reward_mean` is the mean over all samples (mean@k),
            `eval/best_of_k` that of each prompt's best, which is pass@k for rewards of 0 and 1.
        temperature: 0 is greedy.
    """

    data: DataConfig = DataConfig()
    every: NonNegativeInt = 0
    num_prompts: PositiveInt = 64
    samples_per_prompt: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    table_rows: NonNegativeInt = 4

    def _faults(self) -> Iterator[str]:
        if self.samples_per_prompt > 1 and not self.temperature:
            yield (
                f"temperature must be above 0 for samples_per_prompt {self.samples_per_prompt}: "
                "greedy samples of a prompt are all the same"
            )


class SupervisedEvalConfig(Config):
    """Loss and metrics on held-out rows before the first step, every `every` and after the last."""

    data: DataConfig = DataConfig()
    every: NonNegativeInt = 0
    table_rows: NonNegativeInt = 4


class SftEvalConfig(SupervisedEvalConfig):
    """Also what the model writes after the first held-out prompts, greedily."""

    max_new_tokens: PositiveInt = 64
