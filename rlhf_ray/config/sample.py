"""Sampling: what a policy answers, judged; pairs for reward models and DPO come of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.learners import CriticConfig, ReferenceConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.rewards import ShapingConfig


def _no_training() -> AlgorithmConfig:
    return AlgorithmConfig(advantage="grpo")


class SampleConfig(OnlineConfig):
    """Several answers to each prompt, judged by the rewards: nothing is trained.

    A run writes `samples.jsonl`, every answer with its score, and `pairs.jsonl`, for each prompt
    whose answers differ in score a better and a worse one. Every step adds to them; a resumed run
    keeps what is there.

    Attributes:
        total_steps: Batches of `prompts_per_step` prompts.
        pairs: `best_worst` takes the extremes of a prompt's answers; `all` takes every two answers
            that differ in score.
        algorithm: As it is: there is no update. Neither `value`, `reference`, `reference_kind`,
            `reward.shaping`, `max_staleness` nor `empty_steps_to_stop` can be set.
    """

    job = "sample"
    trains = False
    fixed_keys = (*OnlineConfig.fixed_keys, "samples_per_prompt", "pairs")

    pairs: Literal["best_worst", "all"] = "best_worst"
    algorithm: AlgorithmConfig = Field(default_factory=_no_training)

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        unused = {
            "algorithm": self.algorithm != _no_training(),
            "value": self.value != CriticConfig(),
            "reference": self.reference != ReferenceConfig(),
            "reference_kind": self.reference_kind != "auto",
            "max_staleness": self.max_staleness > 0,
            "empty_steps_to_stop": self.empty_steps_to_stop
            != OnlineConfig.model_fields["empty_steps_to_stop"].default,
            "reward.shaping": self.reward.shaping != ShapingConfig(),
        }
        if given := [key for key, is_given in unused.items() if is_given]:
            yield (
                f"{', '.join(given)}: sampling trains nothing and would ignore what is set there; "
                "leave it out"
            )
