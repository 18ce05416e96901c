"""The critic on one rank: values of rollouts, and updates towards returns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.algorithms.value_losses import VALUE_LOSSES, ValueLossInputs, ValueLossParams
from rlhf_ray.learner.base import Learner
from rlhf_ray.learner.engine import EngineBuilder
from rlhf_ray.learner.rows import action_lens, action_mask, flat, rollout_batch
from rlhf_ray.learner.scoring import score_rollouts
from rlhf_ray.learner.update import UpdateSettings
from rlhf_ray.models.classifier import load_decoder
from rlhf_ray.models.heads import ValueModel
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.specs import ValueSpec
from rlhf_ray.types import Experience, Rollout


class ValueLearner(Learner):
    """Holds one rank's share of the critic."""

    model: ValueModel

    def __init__(self, spec: ValueSpec, builder: EngineBuilder) -> None:
        """Load the model and hand it to an engine."""
        self.spec = spec
        super().__init__(
            spec.learner,
            builder,
            UpdateSettings(
                reduction=spec.algorithm.reduction,
                constant_length=spec.max_new_tokens,
                replay_folder=spec.replay_folder,
            ),
            total_steps=spec.total_steps,
            seed=spec.seed,
        )

    def _load(self) -> ValueModel:
        """A decoder with a new head, or with the reward model's that it comes from."""
        seed = self.spec.seed
        return ValueModel(load_decoder(self.config.model, device=self.device, seed=seed), seed=seed)

    def values(
        self, rollouts: Sequence[Rollout], plan: RankedMicroBatches
    ) -> list[npt.NDArray[np.float32]]:
        """Values of this rank's rows, in the order in which the plan names them: [T + 1] each.

        Before every response token, and of the state after the last one.
        """
        return score_rollouts(self.engine, self.engine, rollouts, plan, self.config, with_end=True)

    def update(self, rows: Sequence[Experience], plan: UpdatePlan) -> dict[str, float]:
        """Epochs times minibatches of the value loss."""
        return self._update(rows, [row.rollout.num_tokens for row in rows], plan, self._loss)

    def _loss(
        self, rows: Sequence[Experience], reduction: Reduction
    ) -> tuple[torch.Tensor, MetricSums]:
        device, algorithm = self.device, self.spec.algorithm
        batch = rollout_batch(
            [row.rollout for row in rows],
            padded=self.model.padded,
            device=device,
        )
        mask_T = action_mask(rows, device)
        term = VALUE_LOSSES[algorithm.value_loss](
            ValueLossInputs(
                values_T=self.engine(batch),
                old_values_T=flat(
                    rows, lambda row: row.values_T, dtype=torch.float32, device=device
                ),
                returns_T=flat(rows, lambda row: row.returns_T, dtype=torch.float32, device=device),
                mask_T=mask_T,
            ),
            ValueLossParams(clip=algorithm.value_clip),
        )
        loss = reduction.reduce(term.loss_T, mask_T, batch.segments_T, action_lens(rows, device))
        return loss, term.metrics
