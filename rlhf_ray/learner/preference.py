"""Direct preference optimisation on one rank: pairs or labelled answers, by any registered loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.metric_sums import Metrics
from rlhf_ray.algorithms.reduction import Reduction
from rlhf_ray.config.supervised import DpoConfig
from rlhf_ray.data.packing import MinibatchPlan, RankedMicroBatches, UpdatePlan
from rlhf_ray.learner.base import Learner
from rlhf_ray.learner.engine import TrainingEngine
from rlhf_ray.learner.loading import zero3_loading
from rlhf_ray.learner.objectives import StepRow, objective_of
from rlhf_ray.learner.rows import answer_batch, answer_sums
from rlhf_ray.learner.scoring import over_ranks, score_answers
from rlhf_ray.learner.update import UpdateSettings, run_update
from rlhf_ray.models.batch import TokenBatch
from rlhf_ray.models.decoder import base_of, require_experts
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import load_causal_lm, without_dropout
from rlhf_ray.roles import Evaluated
from rlhf_ray.specs import SupervisedSpec
from rlhf_ray.types import Referenced

ALL_ANSWERS = slice(0, 2)


class PreferenceLearner(Learner):
    """Holds one rank's share of the policy."""

    def __init__(self, spec: SupervisedSpec, *, device: torch.device) -> None:
        """Load the model and hand it to DeepSpeed.

        Raises:
            ConfigError: It cannot be loaded, or has no experts to balance.
        """
        assert isinstance(spec.job, DpoConfig)
        torch.manual_seed(spec.job.seed)
        self.spec, self.job, self.device = spec, spec.job, device
        config = spec.job.policy
        with zero3_loading(config.zero, config.model, device):
            # Any: it may be wrapped in adapters, which only peft knows how to switch off.
            self.lm: Any = load_causal_lm(config.model, device=device)
        if spec.job.router_aux_loss_coef:
            require_experts(base_of(self.lm).config)
        without_dropout(self.lm)
        self.lm.train()
        self.objective = objective_of(spec.job)
        self.engine = TrainingEngine(
            TokenScorer(
                self.lm,
                temperature=1.0,
                chunk_tokens=config.logits_chunk_tokens,
                with_router_loss=spec.job.router_aux_loss_coef > 0,
            ),
            config,
            total_steps=spec.total_steps,
        )

    def update(self, rows: Sequence[Referenced], plan: UpdatePlan) -> dict[str, float]:
        """One optimiser step a minibatch of the plan."""
        return run_update(
            self.engine,
            rows,
            [_num_tokens(row, self.objective.trained) for row in rows],
            plan,
            self._loss,
            UpdateSettings.of_examples(self.spec, self.job.policy),
            prepare=lambda minibatch: self._prepare(rows, minibatch),
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
        with self.engine.inference():
            sums = score_answers(
                self._logprobs,
                [row.row for row in rows],
                plan,
                self.job.policy,
                device=self.device,
                answers=answers,
            )
        width = answers.stop - answers.start
        return over_ranks(sums, plan, num_rows=len(rows), width=width, device=self.device)

    def _logprobs(self, batch: TokenBatch, num_chunks: int) -> torch.Tensor:
        logprobs_T: torch.Tensor = self.engine(batch, num_chunks=num_chunks).logprobs_T
        return logprobs_T

    def _loss(
        self, rows: Sequence[StepRow], reduction: Reduction, num_chunks: int
    ) -> tuple[torch.Tensor, Metrics]:
        trained = self.objective.trained
        batch = answer_batch(
            [row.referenced.row for row in rows],
            answers=trained,
            padded=self.job.policy.padded,
            device=self.device,
        )
        scores = self.engine(batch, num_chunks=num_chunks)
        sums_B = answer_sums(scores.logprobs_T, batch)
        logps_BK = sums_B[: len(rows) * trained.stop].view(len(rows), trained.stop)
        loss, metrics = self.objective.loss(rows, logps_BK)
        if scores.router_loss is not None:
            # As in the reward model: each pass's own loss, weighed by its tokens.
            num_tokens = sum(row.referenced.row.num_trained_tokens for row in rows)
            share = num_tokens / max(1, reduction.totals.num_tokens)
            loss = loss + self.job.router_aux_loss_coef * share * scores.router_loss
            metrics = {
                **metrics,
                "aux_loss": metric_sums.mean_of(
                    scores.router_loss.expand(num_tokens),
                    torch.ones(num_tokens, dtype=torch.bool, device=self.device),
                ),
            }
        return loss, metrics

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


def _num_tokens(row: Referenced, answers: slice) -> int:
    return sum(len(ids_T) for ids_T in row.row.answer_ids_K[answers])
