"""The policy on one rank: log-probabilities of rollouts, and updates by any registered loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rlhf_ray.algorithms import metric_sums
from rlhf_ray.algorithms.metric_sums import MetricSums
from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES, PolicyLossInputs, PolicyLossParams
from rlhf_ray.algorithms.reduction import Reduction, TokenLoss
from rlhf_ray.algorithms.regularizers import LOSS_TERMS, LossTermInputs
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.learner.base import Learner
from rlhf_ray.learner.engine import EngineBuilder
from rlhf_ray.learner.rows import action_lens, action_mask, flat, rollout_batch
from rlhf_ray.learner.scoring import score_rollouts
from rlhf_ray.learner.update import UpdateSettings
from rlhf_ray.models.heads import TokenScorer
from rlhf_ray.models.load import load_causal_lm
from rlhf_ray.packing import RankedMicroBatches, UpdatePlan
from rlhf_ray.specs import PolicySpec
from rlhf_ray.types import Experience, Rollout


class PolicyLearner(Learner):
    """Holds one rank's share of the policy."""

    model: TokenScorer

    def __init__(self, spec: PolicySpec, builder: EngineBuilder) -> None:
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

    def _load(self) -> TokenScorer:
        return TokenScorer(
            load_causal_lm(self.config.model, device=self.device),
            temperature=self.spec.temperature,
            chunk_tokens=self.config.logits_chunk_tokens,
            entropy_gradient=self.spec.algorithm.entropy_coefficient > 0,
        )

    @property
    def lm(self) -> Any:
        """The transformers model, perhaps with adapters."""
        return self.model.lm

    def logprobs(
        self,
        rollouts: Sequence[Rollout],
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

    def update(
        self, rows: Sequence[Experience], plan: UpdatePlan, kl_coefficient: float
    ) -> dict[str, float]:
        """Epochs times minibatches of the policy loss and its regularizers."""
        return self._update(
            rows,
            [row.rollout.num_tokens for row in rows],
            plan,
            lambda picked, reduction: self._loss(picked, reduction, kl_coefficient),
        )

    def _loss(
        self, rows: Sequence[Experience], reduction: Reduction, kl_coefficient: float
    ) -> tuple[torch.Tensor, MetricSums]:
        algorithm, device = self.spec.algorithm, self.device
        batch = rollout_batch(
            [row.rollout for row in rows],
            padded=self.model.padded,
            device=device,
        )
        scores = self.engine(batch, with_entropy=True)
        logprobs_T = scores.logprobs_T
        mask_T = action_mask(rows, device)
        term_inputs = LossTermInputs(
            mask_T=mask_T,
            logprobs_T=logprobs_T,
            reference_logprobs_T=_floats(rows, "reference_logprobs_T", device),
            old_logprobs_T=_floats(rows, "old_logprobs_T", device),
            entropy_T=scores.entropy_T,
        )
        correction_T = _floats(rows, "correction_T", device)
        policy_term = self._policy_loss(
            rows, logprobs_T, mask_T, batch.segments_T, batch.num_sequences
        )
        terms = [
            (1.0, _weighted(policy_term, correction_T)),
            (algorithm.entropy_coefficient, LOSS_TERMS["entropy"](term_inputs)),
        ]
        if algorithm.kl.where == "loss" and kl_coefficient:
            terms.append((kl_coefficient, self._kl(term_inputs, correction_T)))
        lens_B = action_lens(rows, device)
        loss = logprobs_T.new_zeros(())
        for coefficient, term in terms:
            if coefficient:
                reduced = reduction.reduce(term.loss_T, mask_T, batch.segments_T, lens_B)
                loss = loss + coefficient * reduced
        return loss, metric_sums.merge(term.metrics for _, term in terms)

    def _policy_loss(
        self,
        rows: Sequence[Experience],
        logprobs_T: torch.Tensor,
        mask_T: torch.Tensor,
        segments_T: torch.Tensor,
        num_sequences: int,
    ) -> TokenLoss:
        algorithm, device = self.spec.algorithm, self.device
        return POLICY_LOSSES[algorithm.policy_loss](
            PolicyLossInputs(
                logprobs_T=logprobs_T,
                old_logprobs_T=_floats(rows, "old_logprobs_T", device),
                advantages_T=_floats(rows, "advantages_T", device),
                mask_T=mask_T,
                segments_T=segments_T,
                num_sequences=num_sequences,
            ),
            policy_loss_params(algorithm),
        )

    def _kl(self, inputs: LossTermInputs, correction_T: torch.Tensor) -> TokenLoss:
        """Where tokens are weighted, then from the engine's policy on, which sampled them."""
        kl = self.spec.algorithm.kl
        if not kl.importance_weight:
            return LOSS_TERMS[f"kl_{kl.estimator}"](inputs)
        return _weighted(LOSS_TERMS[f"kl_{kl.estimator}_weighted"](inputs), correction_T)


def _weighted(term: TokenLoss, weights_T: torch.Tensor) -> TokenLoss:
    return TokenLoss(loss_T=term.loss_T * weights_T, metrics=term.metrics)


def policy_loss_params(algorithm: AlgorithmConfig) -> PolicyLossParams:
    """The configuration's numbers for the losses; a dual clip of 0 is none."""
    return PolicyLossParams(
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        dual_clip=algorithm.dual_clip or None,
        tau_pos=algorithm.sapo_temperature_positive,
        tau_neg=algorithm.sapo_temperature_negative,
    )


def _floats(rows: Sequence[Experience], name: str, device: torch.device) -> torch.Tensor:
    return flat(rows, lambda row: getattr(row, name), dtype=torch.float32, device=device)
