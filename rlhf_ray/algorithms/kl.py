"""Estimators of KL(policy || reference) on the policy's own samples, and control of its weight.

Notation of http://joschu.net/blog/kl-approx.html with x ~ policy and r = reference(x) / policy(x).
As a *number to watch*, k1 (unbiased) and k3 (unbiased, never negative, less variance) are right, k2
is near. What counts in training is the gradient, in expectation over x:

    in the reward  k1: ∇KL(policy || reference), as the score function makes it; k2, k3: biased
    in the loss    k1: 0; k2: ∇KL(policy || reference); k3: ∇KL(reference || policy)

all of it for x from the very policy that is differentiated. For x from another one, `old`, a loss
w · k3 with w = policy(x) / old(x), differentiated through w as well, has the gradient of
KL(policy || reference): DeepSeek-V3.2, https://arxiv.org/abs/2512.02556, "unbiased KL estimate".
GRPO's loss is k3, https://arxiv.org/abs/2402.03300, eq. 4.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_ray.algorithms.ratios import clamp_log_ratio, log_ratio
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import KlConfig

KLEstimator = Callable[[Tensor, Tensor], Tensor]
"""(logprobs_T, reference_logprobs_T) -> kl_T in nats per token; log-ratios are clamped to ±20."""

KL_ESTIMATORS: Registry[KLEstimator] = Registry("KL estimator", table.KL_ESTIMATORS)


@KL_ESTIMATORS.register("k1")
def k1(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """-log r: unbiased, of high variance, negative for about half of the tokens. float[T]."""
    return clamp_log_ratio(log_ratio(logprobs_T, reference_logprobs_T))


@KL_ESTIMATORS.register("k2")
def k2(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """(log r)² / 2: biased, of low variance, never negative. float[T]."""
    return 0.5 * clamp_log_ratio(log_ratio(reference_logprobs_T, logprobs_T)).square()


@KL_ESTIMATORS.register("k3")
def k3(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """(r - 1) - log r: unbiased, of low variance, never negative. float[T]."""
    log_ratio_T = clamp_log_ratio(log_ratio(reference_logprobs_T, logprobs_T))
    return torch.expm1(log_ratio_T) - log_ratio_T


class KLController:
    """The weight of the KL penalty: constant, or held so that the KL stays at a target.

    `adaptive` is proportional control in log space. Source: Ziegler et al. 2019, "Fine-Tuning
    Language Models from Human Preferences", https://arxiv.org/abs/1909.08593, section 2.2:

        e = clip(KL / target - 1, -0.2, 0.2)
        coefficient ← coefficient · (1 + e · num_sequences / horizon)

    Attributes:
        coefficient: The weight to use in the next step.
    """

    MAX_ERROR = 0.2
    """Bounds one update, so that a single wild batch cannot throw the coefficient."""

    def __init__(self, config: KlConfig) -> None:
        """Begins with the configuration's coefficient."""
        self.config, self.coefficient = config, config.coefficient
        self.is_fixed = config.controller == "fixed"

    def update(self, kl: float, num_sequences: int) -> None:
        """Moves an adaptive coefficient once, by the mean KL of a step, in the target's unit.

        Raises:
            ValueError: `kl` is not finite: it would stay in the coefficient for ever.
        """
        if self.is_fixed:
            return
        if not math.isfinite(kl):
            raise ValueError(f"kl must be finite, got {kl}")
        error = min(max(kl / self.config.target - 1.0, -self.MAX_ERROR), self.MAX_ERROR)
        # A step longer than the horizon counts as one horizon; otherwise one of five horizons would
        # turn the coefficient to 0, where it stays.
        self.coefficient *= 1.0 + error * min(num_sequences / self.config.horizon, 1.0)

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs: nothing of a fixed one, whose configuration's value holds."""
        return {} if self.is_fixed else {"coefficient": self.coefficient}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restores what `state_dict` returned (ValueError for the state of another kind)."""
        if self.is_fixed and state:
            raise ValueError(f"a fixed KL controller has no state, got {sorted(state)}")
        if not self.is_fixed and set(state) != {"coefficient"}:
            raise ValueError(f"state must hold 'coefficient' only, got {sorted(state)}")
        self.coefficient = state.get("coefficient", self.coefficient)
