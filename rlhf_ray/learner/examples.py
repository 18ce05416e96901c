"""What SFT, reward models and DPO share on one rank: the model under training, and its update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from rlhf_ray.algorithms.metric_sums import Metrics
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.learner.base import Learner
from rlhf_ray.learner.fitting import fitted_update
from rlhf_ray.learner.loading import zero3_loading
from rlhf_ray.learner.update import UpdateSettings, run_update
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.reward import RewardModel
from rlhf_ray.packing import MinibatchPlan, RankedMicroBatches, UpdatePlan
from rlhf_ray.roles import Evaluated
from rlhf_ray.specs import Job, SupervisedSpec
from rlhf_ray.types import Ranking, Referenced, SftExample

Row = TypeVar("Row", bound=SftExample | Ranking | Referenced)


class ExampleLearner(Learner, ABC, Generic[Job, Row]):
    """One rank's share of a model that learns from the rows of a data set.

    Attributes:
        model: What DeepSpeed trains.
        lm: The transformers model in it, perhaps with adapters.
    """

    model: TokenScorer | RewardModel
    lm: Any  # adapters are peft's, and only peft knows how to switch them off

    def __init__(self, spec: SupervisedSpec[Job], *, device: torch.device) -> None:
        """Load the model and hand it to DeepSpeed.

        Raises:
            ConfigError: It cannot be loaded, has no experts to balance, or does not agree with
                itself.
        """
        torch.manual_seed(spec.job.seed)
        self.spec, self.job, self.device = spec, spec.job, device
        self.config = spec.job.learner
        with zero3_loading(self.config.zero, self.config.model, device):
            self.model = self._load()
        self.lm = self.model.lm
        self._start(self.model, self.config, total_steps=spec.total_steps, device=device)

    def update(self, rows: Sequence[Row], plan: UpdatePlan) -> dict[str, float]:
        """One optimiser step a minibatch of the plan."""
        return run_update(
            self.engine,
            rows,
            fitted_update(plan, [row.num_tokens for row in rows], self.config, self.model),
            self._loss,
            UpdateSettings.of_examples(self.spec),
            prepare=partial(self._prepare, rows),
        )

    @abstractmethod
    def evaluate(self, rows: Sequence[Row], plan: RankedMicroBatches) -> Evaluated:
        """Metrics and outcomes of held-out rows; all ranks call it alike."""

    @abstractmethod
    def _load(self) -> TokenScorer | RewardModel:
        """The model as the configuration has it."""

    @abstractmethod
    def _loss(self, rows: Sequence[Any], reduction: Reduction) -> tuple[torch.Tensor, Metrics]:
        """Of one micro-batch; see `run_update`."""

    def _prepare(
        self, rows: Sequence[Row], minibatch: MinibatchPlan
    ) -> Sequence[Any] | Mapping[int, Any]:
        """What one optimiser step trains on, by the rows' numbers: here the rows as they are."""
        return rows
