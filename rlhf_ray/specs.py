"""What roles are made from: configuration as it crosses from the driver to the actors.

Importing this imports no torch, so that the driver can name a role without becoming one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.algorithm_table import OldLogprobs
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.learners import LearnerConfig, ReferenceConfig
from rlhf_ray.config.rewards import RewardConfig, ShapingConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.run import JobConfig

Job = TypeVar("Job", bound=JobConfig)


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """What a policy is made from.

    Attributes:
        temperature: Of sampling; divides the logits here too.
        max_new_tokens: Divides sequences under reduction `constant`.
        old_logprobs: Where those of the policy at the start of a step come from.
        total_steps: Optimiser steps of the run.
        replay_folder: Where experience goes whose update was not finite.
    """

    learner: LearnerConfig
    algorithm: AlgorithmConfig
    old_logprobs: OldLogprobs = "trainer"
    temperature: float
    max_new_tokens: int
    total_steps: int
    replay_folder: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ValueSpec:
    """What a critic is made from; see `PolicySpec`."""

    learner: LearnerConfig
    algorithm: AlgorithmConfig
    max_new_tokens: int
    total_steps: int
    replay_folder: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class ReferenceSpec:
    """What a reference is made from; the temperature is sampling's."""

    reference: ReferenceConfig
    temperature: float


@dataclass(frozen=True, kw_only=True)
class RewardSpec:
    """What scores.

    Attributes:
        timeout_s: What a function has for a group.
        vocabulary: Digest of the policy's: a reward model of the same one scores the tokens that
            were sampled.
        end_token_ids: Of that vocabulary, those that end a response.
    """

    reward: RewardConfig
    timeout_s: float
    vocabulary: str
    end_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class SupervisedSpec(Generic[Job]):
    """What a job on rows of a data set trains: its configuration says which learner it takes.

    Attributes:
        job: An `SftConfig`, `RmConfig` or `DpoConfig`.
        total_steps: Optimiser steps of the run.
        replay_folder: Where rows go whose update was not finite.
    """

    job: Job
    total_steps: int
    replay_folder: str


@dataclass(frozen=True, kw_only=True)
class RolloutSpec:
    """What engines sample with; what they are started with is the pool's business.

    Attributes:
        end_token_ids: Those that end a turn, of tokenizer, model and template.
    """

    rollout: RolloutConfig
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class EnvironmentSpec:
    """What environments are made from, and how engines act in them.

    Attributes:
        end_token_ids: As in `RolloutSpec`.
        chat_template: Of the policy's tokenizer, as it is configured.
        tools: JSON schemas that prompts show.
        max_tokens: Of a rollout, the prompt included: the engines' context.
    """

    environment: EnvironmentConfig
    end_token_ids: tuple[int, ...]
    chat_template: str
    tools: tuple[Mapping[str, Any], ...]
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class ExperienceSpec:
    """What of the configuration decides about advantages.

    Attributes:
        old_logprobs: As in `PolicySpec`.
        reward_weights: Factor of each reward, by name.
    """

    algorithm: AlgorithmConfig
    old_logprobs: OldLogprobs = "trainer"
    shaping: ShapingConfig
    max_new_tokens: int
    reward_weights: Mapping[str, float]


# What ranks host, and all that a role may be made from.
ModelSpec: TypeAlias = PolicySpec | ValueSpec | ReferenceSpec | RewardSpec | SupervisedSpec[Any]
Spec: TypeAlias = ModelSpec | RolloutSpec | EnvironmentSpec | ExperienceSpec


def model_path_of(spec: ModelSpec) -> str:
    """Of the model that a role starts from or scores with; empty where it has none."""
    match spec:
        case PolicySpec() | ValueSpec():
            return spec.learner.model.path
        case ReferenceSpec():
            return spec.reference.model.path
        case RewardSpec():
            return spec.reward.model.path
        case SupervisedSpec():
            path: str = spec.job.learner.model.path
            return path
