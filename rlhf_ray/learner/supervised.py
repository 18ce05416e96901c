"""Which learner a job on rows of a data set takes."""

from __future__ import annotations

from typing import Any

import torch

from rlhf_ray.config.supervised import DpoConfig, RmConfig, SftConfig
from rlhf_ray.learner.examples import ExampleLearner
from rlhf_ray.learner.preference import PreferenceLearner
from rlhf_ray.learner.reward import RewardLearner
from rlhf_ray.learner.sft import SftLearner
from rlhf_ray.specs import SupervisedSpec

_KINDS: dict[type, type[ExampleLearner[Any, Any]]] = {
    SftConfig: SftLearner,
    RmConfig: RewardLearner,
    DpoConfig: PreferenceLearner,
}


def supervised_learner(
    spec: SupervisedSpec[Any], *, device: torch.device
) -> ExampleLearner[Any, Any]:
    """The learner of `spec.job`, with its model loaded.

    Raises:
        ConfigError: The model cannot be loaded as configured.
    """
    return _KINDS[type(spec.job)](spec, device=device)
