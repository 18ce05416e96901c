"""A reward model in training on one rank: scores of answers such that better ones score higher."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.calibration import expected_calibration_error, ranking_calibration
from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.algorithms.regularizers import with_router_loss
from rlhf_ray.algorithms.supervised_losses import (
    REWARD_LOSSES,
    RankingInputs,
    centering,
    reward_metrics,
)
from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.learner.base import ExampleLearner
from rlhf_ray.learner.rows import over_ranks, score_rows
from rlhf_ray.models.classifier import freeze_score_bias, load_classifier
from rlhf_ray.models.reward import RewardModel, Rewards
from rlhf_ray.models.transfer import on_device
from rlhf_ray.packing import RankedMicroBatches
from rlhf_ray.roles.reports import Evaluated
from rlhf_ray.types import Ranking


class RewardLearner(ExampleLearner[RmConfig, Ranking]):
    """Holds one rank's share of the reward model."""

    model: RewardModel

    def _load(self) -> RewardModel:
        """The model, with a new head where it has none."""
        lm = load_classifier(self.config.model, device=self.device, head_seed=self.job.seed)
        if not self.job.center_rewards_coefficient:
            freeze_score_bias(lm)
        return RewardModel(
            lm,
            float32_head=self.job.float32_loss,
            with_router_loss=self.job.router_aux_loss_coef > 0,
        )

    def _loss(
        self, rows: Sequence[Ranking], reduction: Reduction
    ) -> tuple[torch.Tensor, MetricSums]:
        rewards = self._forward(rows)
        places_BK, mask_BK = _places(rows, self.device)
        inputs = self._inputs(rows, rewards.scores_B[places_BK], mask_BK)
        loss = self._row_losses(inputs).sum() / max(1, reduction.num_sequences)
        return with_router_loss(
            loss,
            reward_metrics(inputs),
            rewards.router_loss,
            coefficient=self.job.router_aux_loss_coef,
            num_tokens=sum(row.num_trained_tokens for row in rows),
            num_step_tokens=reduction.num_tokens,
        )

    def _inputs(
        self, rows: Sequence[Ranking], scores_BK: torch.Tensor, mask_BK: torch.Tensor
    ) -> RankingInputs:
        margins = [row.margin if self.job.use_margin else 0.0 for row in rows]
        margins_B = on_device(margins, scores_BK.device).to(scores_BK.dtype)
        return RankingInputs(
            scores_BK=scores_BK,
            mask_BK=mask_BK,
            tiers_BK=_tiers(rows, mask_BK),
            margins_B=margins_B,
        )

    def _row_losses(self, inputs: RankingInputs) -> torch.Tensor:
        loss_B = REWARD_LOSSES[self.job.loss_type](inputs)
        if self.job.center_rewards_coefficient:
            loss_B = loss_B + self.job.center_rewards_coefficient * centering(inputs)
        return loss_B

    def _forward(self, rows: Sequence[Ranking]) -> Rewards:
        """All answers of all rows in one pass, each behind its prompt."""
        sequences = [
            np.concatenate([row.prompt_ids_T, ids_T]) for row in rows for ids_T in row.answer_ids_K
        ]
        prompt_lens = [len(row.prompt_ids_T) for row in rows for _ in row.answer_ids_K]
        layout = self.model.lay_out(sequences, prompt_lens)
        rewards: Rewards = self.engine(layout)
        return rewards

    def scores(self, rows: Sequence[Ranking], plan: RankedMicroBatches) -> list[tuple[float, ...]]:
        """Scores of each row's answers, of all rows on every rank."""

        def score(picked: Sequence[int]) -> list[tuple[float, ...]]:
            some = [rows[row] for row in picked]
            flat = iter(self._forward(some).scores_B.tolist())
            return [tuple(next(flat) for _ in row.answer_ids_K) for row in some]

        lengths_B = [row.num_tokens for row in rows]
        scored = score_rows(self.engine, score, plan, lengths_B, self.config)
        nums_B = [len(row.answer_ids_K) for row in rows]
        table_BK = over_ranks(
            scored,
            plan,
            self.engine.dims,
            num_rows=len(rows),
            width=max(nums_B),
            device=self.device,
        )
        return [tuple(scores[:num]) for num, scores in zip(nums_B, table_BK.tolist(), strict=True)]

    def evaluate(self, rows: Sequence[Ranking], plan: RankedMicroBatches) -> Evaluated:
        """Means over all rows; an outcome is the scores of a row's answers."""
        outcomes_B = self.scores(rows, plan)
        flat = torch.tensor([score for scores in outcomes_B for score in scores])
        places_BK, mask_BK = _places(rows, flat.device)
        inputs = self._inputs(rows, flat[places_BK].double(), mask_BK)
        return Evaluated(
            metrics={
                "loss": float(self._row_losses(inputs).mean()),
                **metric_sums.values(reward_metrics(inputs)),
                "calibration_error": expected_calibration_error(
                    ranking_calibration(outcomes_B, [row.order_K for row in rows])
                ),
            },
            outcomes_B=outcomes_B,
        )


def _places(rows: Sequence[Ranking], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in a flat list of scores each answer's is, int64 [B, K], and which exist, bool [B, K].

    What does not exist points at the row's first answer.
    """
    nums_B = np.array([len(row.answer_ids_K) for row in rows], dtype=np.int64)
    places_K = np.arange(nums_B.max(initial=1))[None, :]
    mask_BK = places_K < nums_B[:, None]
    starts_B = np.cumsum(nums_B) - nums_B
    place_BK = starts_B[:, None] + np.where(mask_BK, places_K, 0)
    return on_device(place_BK, device), on_device(mask_BK, device)


def _tiers(rows: Sequence[Ranking], mask_BK: torch.Tensor) -> torch.Tensor:
    """The tier of each answer, int64 [B, K]; of what does not exist, 0."""
    tiers_BK = np.zeros(mask_BK.shape, dtype=np.int64)
    for row, tiers_K in zip(rows, tiers_BK, strict=True):
        tiers_K[: len(row.answer_ids_K)] = row.order_K
    return on_device(tiers_BK, mask_BK.device)
