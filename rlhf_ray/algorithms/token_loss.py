"""What every loss term returns: losses of tokens, not yet reduced, and its metrics."""

from dataclasses import dataclass

from torch import Tensor

from rlhf_ray.algorithms.metric_sums import Metrics


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """A loss term before `reduction.Reduction` makes a scalar of it.

    Attributes:
        loss_T: float[T], to be minimised; 0 in slots that are not the policy's own.
        metrics: Detached sums; see `metric_sums`.
    """

    loss_T: Tensor
    metrics: Metrics
