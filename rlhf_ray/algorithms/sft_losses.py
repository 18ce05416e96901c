"""Losses of supervised fine-tuning, token by token."""

from collections.abc import Callable

from torch import Tensor

from rlhf_ray.algorithms.registry import Registry
from rlhf_ray.config import algorithm_table as table

SftLoss = Callable[[Tensor], Tensor]
"""logprobs_T of the trained tokens (nats) -> loss_T."""

SFT_LOSSES: Registry[SftLoss] = Registry("SFT loss", table.SFT_LOSSES)


@SFT_LOSSES.register("nll")
def nll(logprobs_T: Tensor) -> Tensor:
    """Negative log-likelihood, -log π. float[T]."""
    return -logprobs_T


@SFT_LOSSES.register("dft")
def dft(logprobs_T: Tensor) -> Tensor:
    """-stop(π) log π: unlikely tokens lose the weight 1/π that likelihood gives them. float[T].

    Source: dynamic fine-tuning, https://arxiv.org/abs/2508.05629.
    """
    # p log p is 0 at p = 0, where the product would be 0 · -inf.
    return -logprobs_T.detach().exp() * logprobs_T.masked_fill(logprobs_T.isneginf(), 0.0)
