"""Which learner a specification takes, and which engine: the one place that names DeepSpeed."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.supervised import RmConfig, SftConfig
from rlhf_ray.learner.base import Learner
from rlhf_ray.learner.deepspeed.engine import DeepSpeedBuilder
from rlhf_ray.learner.engine import EngineBuilder
from rlhf_ray.learner.policy import PolicyLearner
from rlhf_ray.learner.preference import PreferenceLearner
from rlhf_ray.learner.reference import FrozenReference
from rlhf_ray.learner.reward import RewardLearner
from rlhf_ray.learner.reward_scorer import RewardScorer, forward_config
from rlhf_ray.learner.sft import SftLearner
from rlhf_ray.learner.value import ValueLearner
from rlhf_ray.models.reward import RewardModel
from rlhf_ray.specs import PolicySpec, ReferenceSpec, RewardSpec, SupervisedSpec, ValueSpec

# What a rank hosts a model by.
Spec: TypeAlias = PolicySpec | ValueSpec | ReferenceSpec | SupervisedSpec[Any]

_LEARNERS: dict[type, type[Learner] | type[FrozenReference]] = {
    PolicySpec: PolicyLearner,
    ValueSpec: ValueLearner,
    ReferenceSpec: FrozenReference,
    SftConfig: SftLearner,
    RmConfig: RewardLearner,
    DpoConfig: PreferenceLearner,
}


def section_of(spec: Spec) -> ForwardConfig:
    """The part of the configuration that says how the model of `spec` is held."""
    match spec:
        case PolicySpec() | ValueSpec():
            return spec.learner
        case ReferenceSpec():
            return spec.reference
        case SupervisedSpec():
            learner: ForwardConfig = spec.job.learner
            return learner


def engine_builder(spec: Spec, *, device: torch.device) -> EngineBuilder:
    """What brings the model of `spec` into an engine; what it keeps on a drive is this rank's own.

    Raises:
        ConfigError: What the engine needs is not there.
    """
    return DeepSpeedBuilder(section_of(spec), device)


def make_learner(spec: Spec, builder: EngineBuilder) -> Any:
    """The learner of `spec`, or the frozen reference, with its model loaded.

    Raises:
        ConfigError: The model cannot be loaded as configured.
    """
    kind: Any = _LEARNERS[type(spec.job if isinstance(spec, SupervisedSpec) else spec)]
    return kind(spec, builder)


def make_scorer(
    spec: RewardSpec, *, device: torch.device, model: RewardModel | None = None
) -> RewardScorer:
    """The reward model of `spec`; `model` is it, where this process holds it already.

    Raises:
        ConfigError: It cannot be loaded, or is of no use as a scorer.
    """
    return RewardScorer(
        spec.reward.model,
        DeepSpeedBuilder(forward_config(spec.reward.model), device),
        model=model,
        vocabulary=spec.vocabulary,
        end_ids=spec.end_token_ids,
    )
