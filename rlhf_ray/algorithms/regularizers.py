"""Small terms that are added to a loss: entropy, KL, and the load of experts.

The loss of a step is the sum over terms of coefficient · Reduction.reduce(term). The coefficients
are the caller's, and positive: a term is what should become *smaller*.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.kl import KL_ESTIMATORS, KLEstimator
from rlhf_ray.algorithms.metric_sums import MetricSums, mean_of
from rlhf_ray.algorithms.ragged import masked
from rlhf_ray.algorithms.ratios import clamp_log_ratio, is_clamped, log_ratio
from rlhf_ray.algorithms.reduction import TokenLoss
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table


@dataclass(frozen=True, kw_only=True)
class LossTermInputs:
    """A micro-batch.

    Attributes:
        mask_T: bool[T].
        logprobs_T: float[T], of the policy being trained (KL terms).
        reference_logprobs_T: float[T], without gradient (KL terms).
        old_logprobs_T: float[T], of the policy at the start of the step, without gradient
            (kl_k3_weighted).
        entropy_T: float[T], in nats, of the policy being trained (entropy term).
    """

    mask_T: Tensor
    logprobs_T: Tensor
    reference_logprobs_T: Tensor
    old_logprobs_T: Tensor
    entropy_T: Tensor


LossTerm = Callable[[LossTermInputs], TokenLoss]

LOSS_TERMS: Registry[LossTerm] = Registry("loss term", table.LOSS_TERMS)


@LOSS_TERMS.register("entropy")
def entropy(inputs: LossTermInputs) -> TokenLoss:
    """The entropy bonus: minus the entropy of the policy at each action token.

    Source: Williams and Peng 1991; PPO, https://arxiv.org/abs/1707.06347, eq. 9. It is reduced as
    the policy's loss is; TRL takes the mean over tokens whatever the reduction.
    """
    entropy_T = masked(inputs.entropy_T, inputs.mask_T)
    return TokenLoss(loss_T=-entropy_T, metrics={"entropy": mean_of(entropy_T, inputs.mask_T)})


def _kl_term(estimator: KLEstimator, *, weighted: bool = False) -> LossTerm:
    """Makes the loss term that penalises `estimator`'s KL to the reference.

    Where it is `weighted`, each token counts by w = π / π_old, through which the gradient flows:
    see `kl`. In a loss it is the KL of single tokens after contexts as they were sampled; what a
    token does to later ones is felt by the KL in the reward alone.
    """

    def kl(inputs: LossTermInputs) -> TokenLoss:
        logprobs_T = masked(inputs.logprobs_T, inputs.mask_T)
        reference_T = masked(inputs.reference_logprobs_T, inputs.mask_T).detach()
        kl_T = estimator(logprobs_T, reference_T)
        clamped_T = is_clamped(log_ratio(logprobs_T, reference_T))
        if weighted:
            old_T = masked(inputs.old_logprobs_T, inputs.mask_T).detach()
            to_old_T = log_ratio(logprobs_T, old_T)
            kl_T = clamp_log_ratio(to_old_T).exp() * kl_T
            clamped_T = clamped_T | is_clamped(to_old_T)
        metrics = {
            "kl_ref": mean_of(kl_T, inputs.mask_T),
            "kl_clamp_share": mean_of(clamped_T, inputs.mask_T),
        }
        return TokenLoss(loss_T=kl_T, metrics=metrics)

    return kl


# By the table not k1: its expected gradient is 0.
for _name, _row in table.KL_ESTIMATORS.items():
    if _row.where == "loss":
        LOSS_TERMS.register(f"kl_{_name}")(_kl_term(KL_ESTIMATORS[_name]))
    if _row.can_be_weighted:
        LOSS_TERMS.register(f"kl_{_name}_weighted")(_kl_term(KL_ESTIMATORS[_name], weighted=True))


def with_router_loss(
    loss: Tensor,
    metrics: MetricSums,
    router_loss: Tensor | None,
    *,
    coefficient: float,
    num_tokens: int,
    num_step_tokens: int,
) -> tuple[Tensor, MetricSums]:
    """Add a pass's load-balancing loss to its loss, and `aux_loss` to its metrics.

    The loss of each pass is weighed by its tokens: that of a whole batch is no sum of its parts.
    An empty pass weighs nothing, and a `router_loss` of None leaves everything as it is. Tokens are
    the trained ones, of the pass and of the whole step.
    """
    if router_loss is None:
        return loss, metrics
    share = num_tokens / max(1, num_step_tokens)
    mask_T = torch.ones(num_tokens, dtype=torch.bool, device=router_loss.device)
    aux_loss = mean_of(router_loss.expand(num_tokens), mask_T)
    return loss + coefficient * share * router_loss, {**metrics, "aux_loss": aux_loss}
