"""Advantage estimators: from token rewards (and values) to one advantage an own token.

An estimator is given the whole step's sequences, those of all ranks: groups must be complete and
means and deviations global. The group methods see one number a sequence, the sum of its token
rewards. In each of them a group of one sample has advantage 0, and sequences without own tokens are
not part of their group. No estimator but `reinforce++` and its variant whitens; see `whitening`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.gae import generalized_advantages
from rlhf_ray.algorithms.groups import Groups
from rlhf_ray.algorithms.ragged import own
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.algorithms.whitening import whiten


@dataclass(frozen=True, kw_only=True)
class AdvantageInputs:
    """All sequences of a step.

    Attributes:
        token_rewards_T: float[T]; see `token_rewards`.
        values_T: float[T], or None where the estimator has `needs_values` False.
        mask_T: bool[T].
        segments_T: int64[T].
        groups_B: int64[B], the same number for the samples of one draw of a prompt.
    """

    token_rewards_T: Tensor
    values_T: Tensor | None
    mask_T: Tensor
    segments_T: Tensor
    groups_B: Tensor


@dataclass(frozen=True, kw_only=True)
class AdvantageParams:
    """Parameters of all estimators; each uses those that it names.

    Attributes:
        gamma: Discount a token, in [0, 1] (gae, reinforce++).
        lam: λ of GAE, in [0, 1].
        std_epsilon: Added to a group's standard deviation (grpo), in units of the reward.

    Raises:
        ValueError: A value is out of range.
    """

    gamma: float
    lam: float
    std_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.std_epsilon > 0.0:
            raise ValueError(f"std_epsilon must be positive, got {self.std_epsilon}")


@dataclass(frozen=True, kw_only=True)
class AdvantageOutputs:
    """What an estimator found.

    Attributes:
        advantages_T: float[T]; 0 in slots that are not the policy's own.
        returns_T: float[T], the critic's targets; None for estimators without a critic.
    """

    advantages_T: Tensor
    returns_T: Tensor | None


AdvantageFn = Callable[[AdvantageInputs, AdvantageParams], AdvantageOutputs]


@dataclass(frozen=True, kw_only=True)
class AdvantageEstimator:
    """A registered estimator; call it like its function.

    Attributes:
        compute: The function.
        needs_values: Whether it needs a critic.
    """

    compute: AdvantageFn
    needs_values: bool

    def __call__(self, inputs: AdvantageInputs, params: AdvantageParams) -> AdvantageOutputs:
        """Computes the advantages (ValueError if `values_T` is needed and missing)."""
        if self.needs_values and inputs.values_T is None:
            raise ValueError("values_T must be given for an estimator that needs values, got None")
        return self.compute(inputs, params)


ADVANTAGES: Registry[AdvantageEstimator] = Registry("advantage estimator")


def _register(name: str, *, needs_values: bool = False) -> Callable[[AdvantageFn], AdvantageFn]:
    def add(compute: AdvantageFn) -> AdvantageFn:
        ADVANTAGES.register(name)(AdvantageEstimator(compute=compute, needs_values=needs_values))
        return compute

    return add


@_register("gae", needs_values=True)
def gae(inputs: AdvantageInputs, params: AdvantageParams) -> AdvantageOutputs:
    """Generalised advantage estimation; see `generalized_advantages`. Returns are A + V."""
    assert inputs.values_T is not None
    values_T = own(inputs.values_T.detach(), inputs.mask_T)
    advantages_T = generalized_advantages(
        inputs.token_rewards_T,
        values_T,
        inputs.mask_T,
        inputs.segments_T,
        gamma=params.gamma,
        lam=params.lam,
    )
    return AdvantageOutputs(advantages_T=advantages_T, returns_T=advantages_T + values_T)


@_register("grpo")
def grpo(inputs: AdvantageInputs, params: AdvantageParams) -> AdvantageOutputs:
    """(R - mean) / (std + ε) within the group, with the unbiased deviation that TRL uses.

    Source: DeepSeekMath, https://arxiv.org/abs/2402.03300, section 4.1.2. A group without spread
    has advantage 0 exactly.
    """
    groups = _groups(inputs)
    centered_B = groups.centered_B
    variance_B = groups.sum(centered_B.square()) / (groups.size_B - 1).clamp(min=1)
    advantages_B = centered_B / (variance_B.sqrt() + params.std_epsilon)
    return _broadcast(advantages_B, inputs)


@_register("dr_grpo")
def dr_grpo(inputs: AdvantageInputs, params: AdvantageParams) -> AdvantageOutputs:
    """R - mean within the group; no division by the deviation, which favours easy and hard prompts.

    Source: Dr. GRPO, https://arxiv.org/abs/2503.20783, section 3.2.
    """
    return _broadcast(_groups(inputs).centered_B, inputs)


@_register("rloo")
def rloo(inputs: AdvantageInputs, params: AdvantageParams) -> AdvantageOutputs:
    """R minus the mean of the *other* samples, which is n / (n - 1) (R - mean).

    Source: https://arxiv.org/abs/2402.14740, section 3.
    """
    groups = _groups(inputs)
    factor_B = groups.size_B / (groups.size_B - 1).clamp(min=1)
    return _broadcast(factor_B * groups.centered_B, inputs)


@_register("reinforce++")
def reinforce_plus_plus(inputs: AdvantageInputs, params: AdvantageParams) -> AdvantageOutputs:
    """Discounted returns of tokens, whitened over all own tokens of the step.

    Source: REINFORCE++, https://arxiv.org/abs/2501.03262, section 3.
    """
    returns_T = generalized_advantages(
        inputs.token_rewards_T,
        torch.zeros_like(inputs.token_rewards_T),
        inputs.mask_T,
        inputs.segments_T,
        gamma=params.gamma,
        lam=1.0,
    )
    return AdvantageOutputs(advantages_T=whiten(returns_T, inputs.mask_T), returns_T=None)


@_register("reinforce++_baseline")
def reinforce_plus_plus_baseline(
    inputs: AdvantageInputs, params: AdvantageParams
) -> AdvantageOutputs:
    """R - mean within the group, whitened over all own tokens of the step.

    Source: REINFORCE++ with baseline, https://arxiv.org/abs/2501.03262, section 3. Groups of one
    stay out of the whitening, whose shift would give them an advantage.
    """
    groups = _groups(inputs)
    centered = _broadcast(groups.centered_B, inputs)
    in_group_T = inputs.mask_T & (groups.size_B > 1)[inputs.segments_T]
    return AdvantageOutputs(advantages_T=whiten(centered.advantages_T, in_group_T), returns_T=None)


def _groups(inputs: AdvantageInputs) -> Groups:
    return Groups(inputs.token_rewards_T, inputs.mask_T, inputs.segments_T, inputs.groups_B)


def _broadcast(advantages_B: Tensor, inputs: AdvantageInputs) -> AdvantageOutputs:
    """Gives every own token its sequence's advantage."""
    advantages_T = advantages_B[inputs.segments_T].to(inputs.token_rewards_T.dtype)
    return AdvantageOutputs(advantages_T=own(advantages_T, inputs.mask_T), returns_T=None)
