"""A policy's learner in this process, as a job would have it, and rows to train it on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.models import device_of, make_model, random_ids
from benchmarks.gpu_check.scale import Shape
from benchmarks.gpu_check.setting import Setting
from benchmarks.gradients import process_group
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.learners import LearnerConfig
from rlhf_ray.learner.build import engine_builder, make_learner
from rlhf_ray.learner.policy import PolicyLearner
from rlhf_ray.packing import UpdatePlan, plan_update
from rlhf_ray.specs import PolicySpec
from rlhf_ray.types import Experience, Prompt, Rollout


def alone(setting: Setting) -> AbstractContextManager[bool]:
    """A process group of this process, one for all checks in it: DeepSpeed keeps what it found."""

    @contextmanager
    def opened() -> Iterator[bool]:
        with process_group(device_of(setting.scale)):
            yield True

    return opened()


@contextmanager
def policy_learner(
    setting: Setting, shape: Shape, *, algorithm: dict[str, Any] | None = None, **learner: Any
) -> Iterator[PolicyLearner]:
    """Of a random model of a shape; `learner` is laid over its configuration."""
    setting.shared(alone)
    device = device_of(setting.scale)
    dtype = torch.bfloat16 if setting.scale.on_gpu else torch.float32
    path = make_model(setting.folder / shape.family, shape, device=device, dtype=dtype)
    model = {"path": str(path), **learner.pop("model", {})}
    spec = PolicySpec(
        learner=LearnerConfig.model_validate({"model": model, **learner}),
        algorithm=AlgorithmConfig.model_validate({"advantage": "grpo", **(algorithm or {})}),
        temperature=1.0,
        max_new_tokens=1,
        total_steps=100,
        replay_folder="",
        seed=0,
    )
    made = make_learner(spec, engine_builder(spec, device=device))
    try:
        yield made
    finally:
        made.close()
        del made
        if setting.scale.on_gpu:
            torch.cuda.empty_cache()


def experience(
    shape: Shape, *, prompts: Sequence[int], responses: Sequence[int]
) -> list[Experience]:
    """Random rows with so many tokens of prompt and response each."""
    generator = np.random.default_rng(3)
    rows = []
    for number, (num_prompt, num_response) in enumerate(zip(prompts, responses, strict=True)):
        zeros_T = np.zeros(num_response, dtype=np.float32)
        # A random model gives each token about the same: the ratio then is within its bounds.
        uniform_T = np.full(num_response, -np.log(shape.settings["vocab_size"]), dtype=np.float32)
        rollout = Rollout(
            prompt=Prompt(
                prompt_id=f"row{number}",
                token_ids_T=tuple(random_ids(generator, shape, num_prompt).tolist()),
                text="",
            ),
            draw=number,
            sample=0,
            response_ids_T=random_ids(generator, shape, num_response),
            logprobs_T=uniform_T,
            versions_T=zeros_T.astype(np.int32),
            action_mask_T=np.ones(num_response, dtype=np.bool_),
            finish_reason="length",
            text="",
        )
        rows.append(
            Experience(
                rollout=rollout,
                old_logprobs_T=uniform_T,
                reference_logprobs_T=uniform_T,
                values_T=zeros_T,
                advantages_T=generator.normal(size=num_response).astype(np.float32),
                returns_T=zeros_T,
            )
        )
    return rows


def plan_of(rows: Sequence[Experience], config: LearnerConfig) -> UpdatePlan:
    """All rows in one optimiser step of one rank."""
    return plan_update(
        [row.rollout.num_tokens for row in rows],
        [len(row.rollout.response_ids_T) for row in rows],
        data_parallel_size=1,
        max_tokens_per_micro_batch=config.max_tokens_per_micro_batch,
        num_minibatches=1,
        num_epochs=1,
        seed=0,
        padded=config.padded,
    )
