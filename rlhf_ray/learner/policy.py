"""The policy on one rank: log-probabilities of rollouts, and updates by any registered loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.correction import CORRECTIONS, Correction, CorrectionInputs
from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES, PolicyLossInputs
from rlhf_ray.algorithms.reduction import Reduction, TokenLoss
from rlhf_ray.algorithms.regularizers import LOSS_TERMS, LossTermInputs
from rlhf_ray.config.algorithm_table import ScoredModel
from rlhf_ray.learner.adapters import without_adapter
from rlhf_ray.learner.base import ExperienceLearner
from rlhf_ray.learner.rows import action_lens, score_rollouts
from rlhf_ray.models.batch import TokenBatch
from rlhf_ray.models.decoder import vocabulary_of
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.own_rows import OtherRow
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.specs import PolicySpec
from rlhf_ray.types import Experience, Rollout


class PolicyLearner(ExperienceLearner):
    """Holds one rank's share of the policy."""

    model: TokenScorer
    spec: PolicySpec
    _first_step = 0  # of the engine's optimiser steps, in the update that runs

    def _load(self) -> TokenScorer:
        lm = load_causal_lm(self.config.model, device=self.device)
        return TokenScorer(
            lm,
            temperature=self.spec.temperature,
            chunk_tokens=self.config.chunk_tokens(vocabulary_of(lm)),
            entropy_gradient=self.spec.algorithm.entropy_coefficient > 0,
        )

    @property
    def lm(self) -> Any:
        """The transformers model, perhaps with adapters."""
        return self.model.lm

    def logprobs(
        self,
        rollouts: Sequence[Rollout | OtherRow],
        plan: RankedMicroBatches,
        *,
        temperature: float | None = None,
    ) -> list[npt.NDArray[np.float32]]:
        """Log-probabilities of this rank's rows, in the order in which the plan names them.

        They are those at sampling's temperature, unless another is given.
        """
        return score_rollouts(
            self.engine,
            lambda batch: self.engine(batch, temperature=temperature).logprobs_T,
            rollouts,
            plan,
            self.config,
        )

    def logprobs_of(
        self,
        rollouts: Sequence[Rollout | OtherRow],
        plan: RankedMicroBatches,
        models: Sequence[ScoredModel],
    ) -> list[list[npt.NDArray[np.float32]]]:
        """The same for each of `models`, which all pass a micro-batch before the next one comes."""

        def forward(batch: TokenBatch) -> Tensor:
            return torch.stack([self._scored_by(model, batch) for model in models], dim=1)

        scored = score_rollouts(self.engine, forward, rollouts, plan, self.config)
        return [
            [np.ascontiguousarray(row_TM[:, index]) for row_TM in scored]
            for index in range(len(models))
        ]

    def _scored_by(self, model: ScoredModel, batch: TokenBatch) -> Tensor:
        with without_adapter(self.lm) if model == "base" else nullcontext():
            logprobs_T: Tensor = self.engine(batch).logprobs_T
        return logprobs_T

    def update(
        self, rows: Sequence[Experience | OtherRow], plan: UpdatePlan, kl_coefficient: float
    ) -> dict[str, float]:
        """Epochs times minibatches of the policy loss and its regularizers.

        Metrics as in `run_update`, and `mismatch/*`: how far what sampled the rows is from the
        trainer.
        """
        self._first_step = self.engine.num_steps
        return self._update_on(
            rows, plan, lambda picked, reduction: self._loss(picked, reduction, kl_coefficient)
        )

    def _loss(
        self, rows: Sequence[Experience], reduction: Reduction, kl_coefficient: float
    ) -> tuple[Tensor, MetricSums]:
        algorithm, batch = self.spec.algorithm, self._batch(rows)
        scores = self.engine(batch, with_entropy=True)
        logprobs_T = scores.logprobs_T
        mask_T = torch.ones_like(logprobs_T, dtype=torch.bool)  # own tokens alone are scored
        old_logprobs_T, correction = self._old_policy(rows, batch, logprobs_T.detach(), mask_T)
        correction_T = correction.weights_T
        term_inputs = LossTermInputs(
            mask_T=mask_T,
            logprobs_T=logprobs_T,
            reference_logprobs_T=self._floats(rows, "reference_logprobs_T"),
            old_logprobs_T=old_logprobs_T,
            entropy_T=scores.entropy_T,
        )
        policy_term = POLICY_LOSSES[algorithm.policy_loss](
            PolicyLossInputs(
                logprobs_T=logprobs_T,
                old_logprobs_T=old_logprobs_T,
                advantages_T=self._floats(rows, "advantages_T"),
                mask_T=mask_T,
                segments_T=batch.segments_T,
                num_sequences=batch.num_sequences,
            ),
            algorithm,
        )
        terms = [
            (1.0, _weighted(policy_term, correction_T)),
            (algorithm.entropy_coefficient, LOSS_TERMS["entropy"](term_inputs)),
        ]
        if algorithm.kl.where == "loss" and kl_coefficient:
            terms.append((kl_coefficient, self._kl(term_inputs, correction_T)))
        lens_B = action_lens(rows, self.device)
        loss = logprobs_T.new_zeros(())
        for coefficient, term in terms:
            if coefficient:
                reduced = reduction.reduce(term.loss_T, mask_T, batch.segments_T, lens_B)
                loss = loss + coefficient * reduced
        mismatch = {f"mismatch/{name}": metric for name, metric in correction.metrics.items()}
        return loss, metric_sums.merge([*(term.metrics for _, term in terms), mismatch])

    def _old_policy(
        self, rows: Sequence[Experience], batch: TokenBatch, now_T: Tensor, mask_T: Tensor
    ) -> tuple[Tensor, Correction]:
        """Log-probabilities at the start of the step, and weights that correct for the engine.

        Where the engine's stand for the policy's own there is nothing to correct. How far they are
        apart shows as long as the policy is the one that was published: in the first optimiser
        step. `now_T` are this pass's own, without gradient.
        """
        source, correction = self.spec.old_logprobs, self.spec.algorithm.correction
        behaviour_T = self._floats(rows, "rollout.logprobs_T")
        known_T = {"update": now_T, "engine": behaviour_T}
        old_T = known_T[source] if source in known_T else self._floats(rows, "old_logprobs_T")
        compared = CORRECTIONS["none" if source == "engine" else correction.kind](
            CorrectionInputs(
                old_logprobs_T=now_T if source == "engine" else old_T,
                behaviour_logprobs_T=behaviour_T,
                mask_T=mask_T,
                segments_T=batch.segments_T,
                num_sequences=batch.num_sequences,
                level=self.spec.algorithm.correction_level,
            ),
            correction,
        )
        if source == "engine" and self.engine.num_steps > self._first_step:
            return old_T, replace(compared, metrics={})
        return old_T, compared

    def _kl(self, inputs: LossTermInputs, correction_T: Tensor) -> TokenLoss:
        """Where tokens are weighted, then from the engine's policy on, which sampled them."""
        kl = self.spec.algorithm.kl
        if not kl.importance_weight:
            return LOSS_TERMS[f"kl_{kl.estimator}"](inputs)
        return _weighted(LOSS_TERMS[f"kl_{kl.estimator}_weighted"](inputs), correction_T)


def _weighted(term: TokenLoss, weights_T: Tensor) -> TokenLoss:
    return TokenLoss(loss_T=term.loss_T * weights_T, metrics=term.metrics)
