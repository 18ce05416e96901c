"""Losses of the critic, token by token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.metric_sums import explained_variance, mean_of
from rlhf_ray.algorithms.ragged import masked
from rlhf_ray.algorithms.reduction import TokenLoss
from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table
from rlhf_ray.config.algorithm import AlgorithmConfig


@dataclass(frozen=True, kw_only=True)
class ValueLossInputs:
    """A micro-batch.

    Attributes:
        values_T: float[T], of the critic being trained; the only one that gets a gradient.
        old_values_T: float[T], that the advantages were computed with.
        returns_T: float[T], the targets.
        mask_T: bool[T].
    """

    values_T: Tensor
    old_values_T: Tensor
    returns_T: Tensor
    mask_T: Tensor


ValueLoss = Callable[[ValueLossInputs, AlgorithmConfig], TokenLoss]
"""(inputs, params) -> loss_T; `value_clip` is how far a value may move from its old one."""

VALUE_LOSSES: Registry[ValueLoss] = Registry("value loss", table.VALUE_LOSSES)


@VALUE_LOSSES.register("clipped")
def clipped(inputs: ValueLossInputs, params: AlgorithmConfig) -> TokenLoss:
    """Half the larger squared error of the value and of the value kept near the old one.

    Source: PPO2 of OpenAI baselines, as described in
    https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, detail 9.
    """
    values_T = masked(inputs.values_T, inputs.mask_T)
    old_values_T = masked(inputs.old_values_T, inputs.mask_T).detach()
    returns_T = masked(inputs.returns_T, inputs.mask_T).detach()
    clip = params.value_clip
    near_T = old_values_T + (values_T - old_values_T).clamp(-clip, clip)
    error_T = (values_T - returns_T).square()
    near_error_T = (near_T - returns_T).square()
    loss_T = 0.5 * torch.maximum(error_T, near_error_T)
    return _token_loss(inputs, loss_T, is_clipped_T=near_error_T > error_T)


@VALUE_LOSSES.register("mse")
def mse(inputs: ValueLossInputs, params: AlgorithmConfig) -> TokenLoss:
    """Half the squared error, without a clip."""
    values_T = masked(inputs.values_T, inputs.mask_T)
    returns_T = masked(inputs.returns_T, inputs.mask_T).detach()
    loss_T = 0.5 * (values_T - returns_T).square()
    return _token_loss(inputs, loss_T, is_clipped_T=torch.zeros_like(inputs.mask_T))


def _token_loss(inputs: ValueLossInputs, loss_T: Tensor, *, is_clipped_T: Tensor) -> TokenLoss:
    metrics = {
        "clip_share": mean_of(is_clipped_T, inputs.mask_T),
        "explained_variance": explained_variance(inputs.values_T, inputs.returns_T, inputs.mask_T),
    }
    return TokenLoss(loss_T=loss_T, metrics=metrics)
