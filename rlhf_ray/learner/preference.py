"""Direct preference optimisation on one rank: pairs or labelled answers, by any registered loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.algorithms.regularizers import with_router_loss
from rlhf_ray.config.dpo import DpoConfig
from rlhf_ray.learner.examples import ExampleLearner
from rlhf_ray.learner.objectives import StepRow, objective_of
from rlhf_ray.learner.rows import answer_batch, answer_sums
from rlhf_ray.learner.scoring import over_ranks, score_answers
from rlhf_ray.models.decoder import base_of, require_experts
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.packing import MinibatchPlan, RankedMicroBatches
from rlhf_ray.roles import Evaluated
from rlhf_ray.types import Referenced

ALL_ANSWERS = slice(0, 2)


class PreferenceLearner(ExampleLearner[DpoConfig, Referenced]):
    """Holds one rank's share of the policy."""

    def _load(self) -> TokenScorer:
        self.objective = objective_of(self.job)
        lm = load_causal_lm(self.config.model, device=self.device)
        balances_experts = self.job.router_aux_loss_coef > 0
        if balances_experts:
            require_experts(base_of(lm).config)
        return TokenScorer(
            lm,
            temperature=1.0,
            chunk_tokens=self.config.logits_chunk_tokens,
            with_router_loss=balances_experts,
        )

    def _prepare(self, rows: Sequence[Referenced], minibatch: MinibatchPlan) -> dict[int, StepRow]:
        """The rows of one optimiser step, by their number in `rows`."""
        plan = minibatch.micro_batches_by_rank
        numbers = sorted(row for ranks in plan for picked in ranks for row in picked)
        rows = self._with_reference(rows, plan)
        ahead_BK = None
        if self.objective.ahead is not None:
            ahead_BK = self._sums(rows, plan, self.objective.ahead)[numbers]
        step_rows = self.objective.prepare([rows[number] for number in numbers], ahead_BK)
        return dict(zip(numbers, step_rows, strict=True))

    def _with_reference(
        self, rows: Sequence[Referenced], plan: RankedMicroBatches
    ) -> Sequence[Referenced]:
        """The policy without its adapter is the reference, where the job says so."""
        if not self.job.uses_reference or self.job.reference_kind != "adapter_off":
            return rows
        without_adapter: AbstractContextManager[None] = self.lm.disable_adapter()
        with without_adapter:
            sums_BK = self._sums(rows, plan, ALL_ANSWERS)
        return [
            replace(row, reference_logps_K=tuple(sums_K))
            for row, sums_K in zip(rows, sums_BK.tolist(), strict=True)
        ]

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
        batch = answer_batch(
            [row.referenced.row for row in rows],
            answers=trained,
            padded=self.model.padded,
            device=self.device,
        )
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
        rows = self._with_reference(rows, plan)
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
