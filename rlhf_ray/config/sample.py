"""Sampling: what a policy answers, judged; pairs for reward models and DPO come of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf_ray.config.online import AlgorithmConfig, OnlineConfig


class SampleConfig(OnlineConfig):
    """Several answers to each prompt, judged by the rewards: nothing is trained.

    A run writes `samples.jsonl`, every answer with its score, and `pairs.jsonl`, for each prompt
    whose answers differ in score a better and a worse one. Every step adds to them; a resumed run
    keeps what is there.

    Attributes:
        total_steps: Batches of `prompts_per_step` prompts.
        pairs: `best_worst` takes the extremes of a prompt's answers; `all` takes every two answers
            that differ in score.
    """

    pairs: Literal["best_worst", "all"] = "best_worst"
    algorithm: AlgorithmConfig = Field(default_factory=lambda: AlgorithmConfig(advantage="grpo"))
