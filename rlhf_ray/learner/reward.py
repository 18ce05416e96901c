"""A reward model in training on one rank: scores of answers such that better ones score higher."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.calibration import (
    calibration,
    expected_calibration_error,
    pair_confidences,
)
from rlhf_ray.algorithms.metric_sums import Metrics
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.algorithms.reward_losses import (
    REWARD_LOSSES,
    RankingInputs,
    centering,
    reward_metrics,
)
from rlhf_ray.config.supervised import RmConfig
from rlhf_ray.data.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.learner.base import Learner
from rlhf_ray.learner.engine import TrainingEngine
from rlhf_ray.learner.loading import zero3_loading
from rlhf_ray.learner.scoring import over_ranks, passes
from rlhf_ray.learner.update import UpdateSettings, run_update
from rlhf_ray.models.classifier import freeze_score_bias, load_classifier
from rlhf_ray.models.load import without_dropout
from rlhf_ray.models.reward import RewardModel, Rewards
from rlhf_ray.roles import Evaluated
from rlhf_ray.specs import SupervisedSpec
from rlhf_ray.types import IntArray, Ranking, SftExample

CALIBRATION_BINS = 20  # of 0 to 1; confidences in an order fill the upper ten


class RewardLearner(Learner):
    """Holds one rank's share of the reward model."""

    def __init__(self, spec: SupervisedSpec, *, device: torch.device) -> None:
        """Load the model, with a new head where it has none, and hand it to DeepSpeed.

        Raises:
            ConfigError: It cannot be loaded, or has no experts to balance.
        """
        assert isinstance(spec.job, RmConfig)
        torch.manual_seed(spec.job.seed)
        self.spec, self.job, self.device = spec, spec.job, device
        config = spec.job.reward
        with zero3_loading(config.zero, config.model, device):
            self.lm = load_classifier(config.model, device=device, head_seed=spec.job.seed)
        without_dropout(self.lm)
        if not spec.job.center_rewards_coefficient:
            freeze_score_bias(self.lm)
        self.model = RewardModel(
            self.lm,
            float32_head=spec.job.float32_loss,
            with_router_loss=spec.job.router_aux_loss_coef > 0,
        )
        self.model.train()
        self.engine = TrainingEngine(self.model, config, total_steps=spec.total_steps)

    def update(self, rows: Sequence[Ranking], plan: UpdatePlan) -> dict[str, float]:
        """One optimiser step a minibatch of the plan."""
        return run_update(
            self.engine,
            rows,
            [0] * len(rows),
            plan,
            self._loss,
            UpdateSettings.of_examples(self.spec, self.job.reward),
        )

    def _loss(
        self, rows: Sequence[Ranking], reduction: Reduction, num_chunks: int
    ) -> tuple[torch.Tensor, Metrics]:
        rewards, totals = self._forward(rows), reduction.totals
        places_BK, mask_BK = _places(rows, self.device)
        inputs = self._inputs(rows, rewards.scores_B[places_BK], mask_BK)
        loss = self._row_losses(inputs).sum() / max(1, totals.num_sequences)
        metrics = dict(reward_metrics(inputs))
        if rewards.router_loss is not None:
            # The loss of each pass, weighed by its tokens: that of a whole batch is no sum of its
            # parts. An empty pass weighs nothing.
            num_tokens = sum(row.num_trained_tokens for row in rows)
            share = num_tokens / max(1, totals.num_tokens)
            loss = loss + self.job.router_aux_loss_coef * share * rewards.router_loss
            metrics["aux_loss"] = metric_sums.mean_of(
                rewards.router_loss.expand(num_tokens),
                torch.ones(num_tokens, dtype=torch.bool, device=self.device),
            )
        return loss, metrics

    def _inputs(
        self, rows: Sequence[Ranking], scores_BK: torch.Tensor, mask_BK: torch.Tensor
    ) -> RankingInputs:
        margins = [row.margin if self.job.use_margin else 0.0 for row in rows]
        margins_B = torch.tensor(margins, dtype=scores_BK.dtype, device=scores_BK.device)
        return RankingInputs(scores_BK=scores_BK, mask_BK=mask_BK, margins_B=margins_B)

    def _row_losses(self, inputs: RankingInputs) -> torch.Tensor:
        loss_B = REWARD_LOSSES[self.job.loss_type](inputs)
        if self.job.center_rewards_coefficient:
            loss_B = loss_B + self.job.center_rewards_coefficient * centering(inputs)
        return loss_B

    def _forward(self, rows: Sequence[Ranking | SftExample]) -> Rewards:
        """All answers of all rows in one pass."""
        sequences = [sequence for row in rows for sequence in _sequences(row)]
        layout = self.model.lay_out(sequences, padded=self.job.reward.padded, device=self.device)
        rewards: Rewards = self.engine(layout)
        return rewards

    def scores(
        self, rows: Sequence[Ranking | SftExample], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """Scores of each row's answers, of all rows on every rank."""
        mine: list[tuple[float, ...]] = []
        with self.engine.inference():
            for picked, _ in passes(plan, [0] * len(rows), self.job.reward):
                some = [rows[row] for row in picked]
                flat = iter(self._forward(some).scores_B.tolist())
                mine += [tuple(next(flat) for _ in _sequences(row)) for row in some]
        nums_B = [len(_sequences(row)) for row in rows]
        table_BK = over_ranks(mine, plan, num_rows=len(rows), width=max(nums_B), device=self.device)
        return [tuple(scores[:num]) for num, scores in zip(nums_B, table_BK.tolist(), strict=True)]

    def evaluate(
        self, rows: Sequence[Ranking] | Sequence[SftExample], plan: RankedMicroBatches
    ) -> Evaluated:
        """Means over all rows; an outcome is the scores of a row's answers.

        Of single answers (examples, each with its prompt) there is but the mean score.
        """
        outcomes_B = self.scores(rows, plan)
        flat = torch.tensor([score for scores in outcomes_B for score in scores])
        rankings = [row for row in rows if isinstance(row, Ranking)]
        if not rankings:
            return Evaluated(metrics={"reward_mean": float(flat.mean())}, outcomes_B=outcomes_B)
        places_BK, mask_BK = _places(rankings, flat.device)
        inputs = self._inputs(rankings, flat[places_BK].double(), mask_BK)
        gaps = [a - b for scores in outcomes_B for a, b in combinations(scores, 2)]
        bins = calibration(*pair_confidences(gaps), CALIBRATION_BINS)
        return Evaluated(
            metrics={
                "loss": float(self._row_losses(inputs).mean()),
                **metric_sums.values(reward_metrics(inputs)),
                "calibration_error": expected_calibration_error(bins),
            },
            outcomes_B=outcomes_B,
        )


def _sequences(row: Ranking | SftExample) -> list[IntArray]:
    """Each answer behind its prompt."""
    if isinstance(row, SftExample):
        return [row.token_ids_T]
    return [np.concatenate([row.prompt_ids_T, ids_T]) for ids_T in row.answer_ids_K]


def _places(rows: Sequence[Ranking], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where in a flat list of scores each answer's is, int64 [B, K], and which exist, bool [B, K].

    What does not exist points at the row's first answer.
    """
    nums_B = np.array([len(row.answer_ids_K) for row in rows], dtype=np.int64)
    places_K = np.arange(nums_B.max(initial=1))[None, :]
    mask_BK = places_K < nums_B[:, None]
    starts_B = np.cumsum(nums_B) - nums_B
    place_BK = starts_B[:, None] + np.where(mask_BK, places_K, 0)
    return torch.from_numpy(place_BK).to(device), torch.from_numpy(mask_BK).to(device)
