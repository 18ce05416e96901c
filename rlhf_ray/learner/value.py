"""The critic on one rank: values of rollouts, and updates towards returns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.algorithms.value_losses import VALUE_LOSSES, ValueLossInputs
from rlhf_ray.learner.base import ExperienceLearner
from rlhf_ray.learner.rows import action_lens, score_rollouts
from rlhf_ray.models.classifier import load_decoder
from rlhf_ray.models.heads import ValueModel
from rlhf_ray.own_rows import OtherRow
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.specs import ValueSpec
from rlhf_ray.types import Experience, Rollout


class ValueLearner(ExperienceLearner):
    """Holds one rank's share of the critic."""

    model: ValueModel
    spec: ValueSpec

    def _load(self) -> ValueModel:
        """A decoder with a new head, or with the reward model's that it comes from."""
        seed = self.spec.seed
        return ValueModel(load_decoder(self.config.model, device=self.device, seed=seed), seed=seed)

    def values(
        self, rollouts: Sequence[Rollout | OtherRow], plan: RankedMicroBatches
    ) -> list[npt.NDArray[np.float32]]:
        """Values of this rank's rows, in the order in which the plan names them: [T + 1] each.

        Before every own token of the response, 0 for others, and of the state after the last one.
        """
        return score_rollouts(self.engine, self.engine, rollouts, plan, self.config, with_end=True)

    def update(self, rows: Sequence[Experience | OtherRow], plan: UpdatePlan) -> dict[str, float]:
        """Epochs times minibatches of the value loss."""
        return self._update_on(rows, plan, self._loss)

    def _loss(
        self, rows: Sequence[Experience], reduction: Reduction
    ) -> tuple[torch.Tensor, MetricSums]:
        algorithm, batch = self.spec.algorithm, self._batch(rows)
        values_T = self.engine(batch)
        mask_T = torch.ones_like(values_T, dtype=torch.bool)  # own tokens alone are scored
        term = VALUE_LOSSES[algorithm.value_loss](
            ValueLossInputs(
                values_T=values_T,
                old_values_T=self._floats(rows, "values_T"),
                returns_T=self._floats(rows, "returns_T"),
                mask_T=mask_T,
            ),
            algorithm,
        )
        lens_B = action_lens(rows, self.device)
        return reduction.reduce(term.loss_T, mask_T, batch.segments_T, lens_B), term.metrics
