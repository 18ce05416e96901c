"""The load-balancing loss of a model with experts, beside the loss that is trained."""

from __future__ import annotations

import torch

from rlhf_ray.algorithms.metric_sums import Metrics, mean_of
from rlhf_ray.algorithms.reduction import ReductionTotals


def with_router_loss(
    loss: torch.Tensor,
    metrics: Metrics,
    router_loss: torch.Tensor | None,
    *,
    coefficient: float,
    num_tokens: int,
    totals: ReductionTotals,
) -> tuple[torch.Tensor, Metrics]:
    """Add a pass's load-balancing loss to its loss, and `aux_loss` to its metrics.

    The loss of each pass is weighed by its tokens: that of a whole batch is no sum of its parts.
    An empty pass weighs nothing.

    Args:
        loss: The pass's share of its step's loss.
        metrics: Of the pass.
        router_loss: A scalar; None leaves everything as it is.
        coefficient: Its weight.
        num_tokens: Trained tokens of the pass.
        totals: Of the whole step.
    """
    if router_loss is None:
        return loss, metrics
    share = num_tokens / max(1, totals.num_tokens)
    mask_T = torch.ones(num_tokens, dtype=torch.bool, device=router_loss.device)
    aux_loss = mean_of(router_loss.expand(num_tokens), mask_T)
    return loss + coefficient * share * router_loss, {**metrics, "aux_loss": aux_loss}
