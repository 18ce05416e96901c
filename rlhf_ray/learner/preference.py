"""Direct preference optimisation on one rank: pairs or labelled answers, by any registered loss.

Some losses need numbers of the whole optimiser step before its first gradient: AOT sorts all pairs,
KTO has a mean over all mismatched answers. A pass without gradients collects those sums over all
micro-batches and ranks. What a row's loss takes from the others is then a constant of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.preference_losses import (
    LABEL_LOSSES,
    PAIR_LOSSES,
    LabelledInputs,
    PairInputs,
    labelled_metrics,
    pair_metrics,
)
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.algorithms.regularizers import with_router_loss
from rlhf_ray.config.algorithm_table import PREFERENCE_LOSSES
from rlhf_ray.config.dpo import DpoConfig, PreferenceLossConfig
from rlhf_ray.learner.adapters import without_adapter
from rlhf_ray.learner.base import ExampleLearner
from rlhf_ray.learner.rows import answer_batch, answer_sums, over_ranks, score_answers
from rlhf_ray.models.decoder import base_of, require_experts, vocabulary_of
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.models.transfer import on_device
from rlhf_ray.packing import MinibatchPlan, RankedMicroBatches
from rlhf_ray.roles.reports import Evaluated
from rlhf_ray.types import LabelledAnswer, Ranking, Referenced

ALL_ANSWERS = slice(0, 2)


class PreferenceLearner(ExampleLearner[DpoConfig, Referenced]):
    """Holds one rank's share of the policy."""

    def _load(self) -> TokenScorer:
        objective = LabelObjective if self.job.takes_labels else PairObjective
        self.objective = objective(self.job)
        lm = load_causal_lm(self.config.model, device=self.device)
        balances_experts = self.job.router_aux_loss_coef > 0
        if balances_experts:
            require_experts(base_of(lm).config)
        return TokenScorer(
            lm,
            temperature=1.0,
            chunk_tokens=self.config.chunk_tokens(vocabulary_of(lm)),
            with_router_loss=balances_experts,
        )

    def _prepare(self, rows: Sequence[Referenced], minibatch: MinibatchPlan) -> dict[int, StepRow]:
        """The rows of one optimiser step, by their number in `rows`."""
        plan = minibatch.micro_batches_by_rank
        numbers = sorted(row for ranks in plan for picked in ranks for row in picked)
        ahead_BK = None
        if self.objective.ahead is not None:
            ahead_BK = self._sums(rows, plan, self.objective.ahead)[numbers]
        step_rows = self.objective.prepare([rows[number] for number in numbers], ahead_BK)
        return dict(zip(numbers, step_rows, strict=True))

    def answer_logps(
        self, rows: Sequence[Ranking | LabelledAnswer], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """As `FrozenReference.answer_logps`, of the policy without its adapter."""
        with without_adapter(self.lm):
            return score_answers(self.engine, rows, plan, self.config)

    def _sums(
        self, rows: Sequence[Referenced], plan: RankedMicroBatches, answers: slice
    ) -> torch.Tensor:
        """Sums of the log-probabilities of answers, of all ranks' rows: float64 [B, K]."""
        answered = [row.row for row in rows]
        sums = score_answers(self.engine, answered, plan, self.config, answers=answers)
        return over_ranks(
            sums,
            plan,
            self.engine.dims,
            num_rows=len(rows),
            width=answers.stop - answers.start,
            device=self.device,
        )

    def _loss(
        self, rows: Sequence[StepRow], reduction: Reduction
    ) -> tuple[torch.Tensor, MetricSums]:
        trained = self.objective.trained
        batch = answer_batch([row.referenced.row for row in rows], self.model, answers=trained)
        scores = self.engine(batch)
        sums_B = answer_sums(scores.logprobs_T, batch)
        logps_BK = sums_B[: len(rows) * trained.stop].view(len(rows), trained.stop)
        loss, metrics = self.objective.loss(rows, logps_BK)
        return with_router_loss(
            loss,
            metrics,
            scores.router_loss,
            coefficient=self.job.router_aux_loss_coef,
            num_tokens=sum(row.referenced.row.num_trained_tokens for row in rows),
            num_step_tokens=reduction.num_tokens,
        )

    def evaluate(self, rows: Sequence[Referenced], plan: RankedMicroBatches) -> Evaluated:
        """Means over all rows; an outcome is the implicit rewards of a row's trained answers."""
        logps_BK = self._sums(rows, plan, ALL_ANSWERS)
        trained, ahead = self.objective.trained, self.objective.ahead
        step_rows = self.objective.prepare(rows, None if ahead is None else logps_BK[:, ahead])
        loss, metrics = self.objective.loss(step_rows, logps_BK[:, trained])
        references_BK = logps_BK.new_tensor([row.reference_logps_K for row in rows])
        rewards_BK = self.job.beta * (logps_BK - references_BK)[:, trained]
        return Evaluated(
            metrics={"loss": float(loss), **metric_sums.values(metrics)},
            outcomes_B=[tuple(rewards_K) for rewards_K in rewards_BK.tolist()],
        )


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """A row with what it takes from the other rows of its optimiser step.

    Attributes:
        referenced: The row and the reference's log-probabilities.
        num_rows: Of the step, over all ranks.
        num_chosen_tokens: Tokens of better answers of the step.
        mismatch_kl: KTO's reference point.
        slopes_K: Derivative of the step's loss by the log-probability of each answer, for coupled
            losses; None for those that can be differentiated row by row.
        loss: The row's share of a coupled loss.
    """

    referenced: Referenced
    num_rows: int
    num_chosen_tokens: int = 0
    mismatch_kl: float = 0.0
    slopes_K: tuple[float, ...] | None = None
    loss: float = 0.0


class PairObjective:
    """A weighted sum of pair losses.

    Attributes:
        trained: Which of a row's answers the loss is differentiated by.
        ahead: Which of them must be known of the whole step before; None for none.
    """

    trained = slice(0, 2)

    def __init__(self, params: PreferenceLossConfig) -> None:
        """Take losses by name, and their parameters."""
        self.params, self.weights = params, params.weighted_losses
        coupled = any(PREFERENCE_LOSSES[name].is_coupled for name in self.weights)
        self.ahead = self.trained if coupled else None

    def prepare(
        self, rows: Sequence[Referenced], ahead_BK: torch.Tensor | None
    ) -> Sequence[StepRow]:
        """Count chosen tokens; differentiate a coupled loss by every log-probability of the step.

        `ahead_BK` is float64, sums of the log-probabilities of the answers in `ahead`.
        The training pass goes on from there by the chain rule, a micro-batch at a time (gradient
        caching, https://arxiv.org/abs/2101.06983, section 3.2).
        """
        num_chosen_tokens = sum(len(_pair(row).answer_ids_K[0]) for row in rows)
        plain = [
            StepRow(referenced=row, num_rows=len(rows), num_chosen_tokens=num_chosen_tokens)
            for row in rows
        ]
        if ahead_BK is None:
            return plain
        leaves_BK = ahead_BK.detach().requires_grad_()
        loss_B = self._losses(self._inputs(plain, leaves_BK))
        [slopes_BK] = torch.autograd.grad(loss_B.sum(), [leaves_BK])
        return [
            replace(row, slopes_K=tuple(slopes_K), loss=loss)
            for row, slopes_K, loss in zip(plain, slopes_BK.tolist(), loss_B.tolist(), strict=True)
        ]

    def loss(
        self, rows: Sequence[StepRow], logps_BK: torch.Tensor
    ) -> tuple[torch.Tensor, MetricSums]:
        """The weighted losses' share, and TRL's metrics."""
        inputs = self._inputs(rows, logps_BK)
        metrics = pair_metrics(inputs, self.params)
        if self.ahead is None:
            return self._losses(inputs).sum(), metrics
        slopes_BK = _beside(logps_BK, [row.slopes_K for row in rows])
        linear = (slopes_BK * logps_BK).sum()
        return linear - linear.detach() + sum(row.loss for row in rows), metrics

    def _losses(self, inputs: PairInputs) -> torch.Tensor:
        """Each pair's share of the step's loss: [B]."""
        loss_B = torch.zeros_like(inputs.chosen_logps_B)
        for name, weight in self.weights.items():
            loss_B = loss_B + weight * PAIR_LOSSES[name](inputs, self.params)
        return loss_B / inputs.num_pairs

    def _inputs(self, rows: Sequence[StepRow], logps_BK: torch.Tensor) -> PairInputs:
        references_BK = _beside(logps_BK, [row.referenced.reference_logps_K for row in rows])
        answers = [_pair(row.referenced).answer_ids_K for row in rows]
        lens = [[len(ids_T) for ids_T in ids_K] for ids_K in answers]
        lens_BK = on_device(lens, logps_BK.device, dtype=np.int64).view_as(logps_BK)
        return PairInputs(
            chosen_logps_B=logps_BK[:, 0],
            rejected_logps_B=logps_BK[:, 1],
            reference_chosen_logps_B=references_BK[:, 0],
            reference_rejected_logps_B=references_BK[:, 1],
            chosen_lens_B=lens_BK[:, 0],
            rejected_lens_B=lens_BK[:, 1],
            num_pairs=rows[0].num_rows if rows else 1,
            num_chosen_tokens=rows[0].num_chosen_tokens if rows else 1,
        )


class LabelObjective:
    """A loss of answers that were found good or bad; see `PairObjective`."""

    trained = slice(0, 1)
    ahead = slice(1, 2)

    def __init__(self, params: PreferenceLossConfig) -> None:
        """Take the loss by name, and its parameters."""
        self.params = params
        [(self.name, self.weight)] = params.weighted_losses.items()

    def prepare(
        self, rows: Sequence[Referenced], ahead_BK: torch.Tensor | None
    ) -> Sequence[StepRow]:
        """Find the step's reference point, from the answers that belong to other prompts."""
        assert ahead_BK is not None
        references_B = ahead_BK.new_tensor([row.reference_logps_K[1] for row in rows])
        mismatch_kl = float((ahead_BK[:, 0] - references_B).mean().clamp(min=0))
        return [
            StepRow(referenced=row, num_rows=len(rows), mismatch_kl=mismatch_kl) for row in rows
        ]

    def loss(
        self, rows: Sequence[StepRow], logps_BK: torch.Tensor
    ) -> tuple[torch.Tensor, MetricSums]:
        """The weighted loss's share, and TRL's metrics."""
        desirable = [_labelled(row.referenced).desirable for row in rows]
        inputs = LabelledInputs(
            logps_B=logps_BK[:, 0],
            reference_logps_B=_beside(
                logps_BK[:, 0], [row.referenced.reference_logps_K[0] for row in rows]
            ),
            mismatch_kl=logps_BK.new_full((), rows[0].mismatch_kl if rows else 0.0),
            desirable_B=on_device(desirable, logps_BK.device, dtype=np.bool_),
        )
        num_rows = rows[0].num_rows if rows else 1
        loss_B = LABEL_LOSSES[self.name](inputs, self.params)
        loss = self.weight * loss_B.sum() / num_rows
        return loss, labelled_metrics(inputs, self.params)


def _beside(logps: torch.Tensor, numbers: Sequence[Any]) -> torch.Tensor:
    """Numbers of the shape of log-probabilities, in their dtype and place."""
    return on_device(numbers, logps.device, dtype=np.float64).to(logps.dtype).view_as(logps)


def _pair(row: Referenced) -> Ranking:
    assert isinstance(row.row, Ranking)
    return row.row


def _labelled(row: Referenced) -> LabelledAnswer:
    assert isinstance(row.row, LabelledAnswer)
    return row.row
