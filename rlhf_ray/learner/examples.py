"""What SFT, reward models and DPO share on one rank: the model under training, and its update."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.learner.base import Learner
from rlhf_ray.learner.engine import EngineBuilder
from rlhf_ray.learner.update import UpdateSettings
from rlhf_ray.packing import MinibatchPlan, RankedMicroBatches, UpdatePlan
from rlhf_ray.roles import Evaluated
from rlhf_ray.specs import Job, SupervisedSpec
from rlhf_ray.types import Ranking, Referenced, SftExample

Row = TypeVar("Row", bound=SftExample | Ranking | Referenced)


class ExampleLearner(Learner, Generic[Job, Row]):
    """One rank's share of a model that learns from the rows of a data set."""

    model: Any  # one with an `lm`: a `TokenScorer` or a `RewardModel`

    def __init__(self, spec: SupervisedSpec[Job], builder: EngineBuilder) -> None:
        """Load the model and hand it to an engine.

        Raises:
            ConfigError: It cannot be loaded, has no experts to balance, or does not agree with
                itself.
        """
        self.spec, self.job = spec, spec.job
        super().__init__(
            spec.job.learner,
            builder,
            UpdateSettings(
                reduction="token_mean", constant_length=None, replay_folder=spec.replay_folder
            ),
            total_steps=spec.total_steps,
            seed=spec.job.seed,
        )

    @property
    def lm(self) -> Any:
        """The transformers model, perhaps with adapters: only peft knows how to switch them off."""
        return self.model.lm

    def update(self, rows: Sequence[Row], plan: UpdatePlan) -> dict[str, float]:
        """One optimiser step a minibatch of the plan."""
        lengths_B = [row.num_tokens for row in rows]
        return self._update(rows, lengths_B, plan, self._loss, partial(self._prepare, rows))

    @abstractmethod
    def evaluate(self, rows: Sequence[Row], plan: RankedMicroBatches) -> Evaluated:
        """Metrics and outcomes of held-out rows; all ranks call it alike."""

    @abstractmethod
    def _loss(self, rows: Sequence[Any], reduction: Reduction) -> tuple[torch.Tensor, MetricSums]:
        """Of one micro-batch; see `run_update`."""

    def _prepare(
        self, rows: Sequence[Row], minibatch: MinibatchPlan
    ) -> Sequence[Any] | Mapping[int, Any]:
        """What one optimiser step trains on, by the rows' numbers: here the rows as they are."""
        return rows
