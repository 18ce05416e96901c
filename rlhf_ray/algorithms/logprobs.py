"""Log-probabilities of given tokens from hidden states, a chunk of logits at a time.

[T, V] logits are the largest tensor of RLHF (32k tokens × 152k words in float32: 20 GB, and as much
again for the backward pass). Here at most `chunk_tokens` rows exist at once: each chunk but the
last is a checkpoint that keeps its hidden states and computes its logits again in the backward
pass. The last one, with which that begins, keeps them; where there is one alone nothing is
computed twice.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# exp(-1000) is 0 in float64 as well, and 0 times it is no NaN.
NO_CHANCE = -1000.0
# Probabilities exist for one part of a chunk's rows at a time: else they would be the third tensor
# as large as its logits.
ENTROPY_PARTS = 4


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """What a language model says of given tokens; None for what was not asked for.

    Attributes:
        logprobs_T: Log-probability (nats) of each token; float32 (float64 if the logits are)
            whatever the dtype of the model. -inf where the head's logit is.
        entropy_T: Entropy (nats) of the distribution that each token was drawn from.
        top_T: int64, the likeliest token in its place.
        router_loss: Load-balancing loss of the whole pass, from a model with experts.
    """

    logprobs_T: Tensor
    entropy_T: Tensor | None = None
    top_T: Tensor | None = None
    router_loss: Tensor | None = None


def token_logprobs(
    hidden_TD: Tensor,
    head: Callable[[Tensor], Tensor],
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    chunk_tokens: int = 1024,
    with_entropy: bool = False,
    entropy_gradient: bool = True,
    with_top: bool = False,
) -> TokenScores:
    """Computes log p(target) and, if asked, what else the same logits say.

    Args:
        hidden_TD: [T, D], the hidden state that predicts each target.
        head: Logits of hidden states, [t, D] -> [t, V]; called at least once, without tokens too.
        targets_T: int64[T].
        temperature: Divides the logits; the temperature the tokens were sampled with.
        chunk_tokens: Most rows of logits that exist at once, forward and backward.
        with_entropy: Whether to compute the entropy, in nats, from the same logits.
        entropy_gradient: Whether the entropy can be differentiated; without, it keeps no graph.
        with_top: Whether to find the likeliest token in each place.

    Raises:
        ValueError: An argument is out of range.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")

    again = _Again()

    def chunk_scores(hidden_tD: Tensor, targets_t: Tensor) -> tuple[Tensor, ...]:
        logits_tV = head(hidden_tD)
        scores: tuple[Tensor, ...] = _Scores.apply(  # type: ignore[no-untyped-call]
            logits_tV, targets_t, temperature, with_entropy, entropy_gradient, again.is_entered
        )
        return (*scores, logits_tV.detach().argmax(-1)) if with_top else scores

    *others, last = zip(hidden_TD.split(chunk_tokens), targets_T.split(chunk_tokens), strict=True)
    chunks = [
        checkpoint(
            chunk_scores, *chunk, use_reentrant=False, context_fn=lambda: (nullcontext(), again)
        )
        for chunk in others
    ]
    chunks.append(chunk_scores(*last))
    logprobs_T, *asked = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return TokenScores(
        logprobs_T=logprobs_T,
        entropy_T=asked.pop(0) if with_entropy else None,
        top_T=asked.pop(0) if with_top else None,
    )


class _Again:
    """Entered while a chunk is computed again for its backward pass, which reads no scores."""

    is_entered = False

    def __enter__(self) -> None:
        self.is_entered = True

    def __exit__(self, *error: object) -> None:
        self.is_entered = False


class _Scores(torch.autograd.Function):
    """Log-probabilities and entropies of logits [t, V] divided by a temperature.

    PyTorch's own gradient would keep and make a tensor as large as the logits for each step of the
    formula. Here the logarithms of all probabilities are kept, and one tensor beside them is made
    at a time, a second for an entropy's gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits_tV: Tensor,
        targets_t: Tensor,
        temperature: float,
        with_entropy: bool,
        entropy_gradient: bool,
        for_gradient_alone: bool,
    ) -> tuple[Tensor, ...]:
        """Both in float32 at least, the entropy where it is asked for.

        Three passes over [t, V] make an entropy; `for_gradient_alone`, one that cannot be
        differentiated is left out, and zeros stand for it.
        """
        ctx.dtype = logits_tV.dtype
        dtype = torch.promote_types(logits_tV.dtype, torch.float32)
        if temperature != 1.0:
            logits_tV = logits_tV.to(dtype) / temperature
        log_p_tV = torch.log_softmax(logits_tV, dim=-1, dtype=dtype)
        logprobs_t = log_p_tV.gather(-1, targets_t.unsqueeze(-1)).squeeze(-1)
        ctx.temperature = temperature
        ctx.entropy_gradient = with_entropy and entropy_gradient
        if not with_entropy:
            ctx.save_for_backward(log_p_tV, targets_t)
            return (logprobs_t,)
        if for_gradient_alone and not entropy_gradient:
            entropy_t = torch.zeros_like(logprobs_t)
        else:
            # A word that is masked by -inf has p = 0 and counts 0, but 0 · -inf is NaN.
            log_p_tV.clamp_(min=NO_CHANCE)
            rows = log_p_tV.split(max(1, -(-len(log_p_tV) // ENTROPY_PARTS)))
            entropy_t = torch.cat([torch.linalg.vecdot(part.exp(), part) for part in rows]).neg_()
        if entropy_gradient:
            ctx.save_for_backward(log_p_tV, targets_t, entropy_t)
        else:
            ctx.save_for_backward(log_p_tV, targets_t)
            ctx.mark_non_differentiable(entropy_t)
        return logprobs_t, entropy_t

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients_t: Tensor) -> tuple[Tensor | None, ...]:
        """Of logits: (g (onehot(target) - p) - h p (log p + H)) / temperature.

        Here p are probabilities, g and h the gradients of log-probability and entropy H.
        """
        log_p_tV, targets_t, *entropy = ctx.saved_tensors
        g_t1, *others = (g_t.unsqueeze(-1) / ctx.temperature for g_t in gradients_t)
        if ctx.entropy_gradient:
            factor_tV = (log_p_tV + entropy[0].unsqueeze(-1)).mul_(others[0]).add_(g_t1)
            gradient_tV = factor_tV.mul_(log_p_tV.exp()).neg_()
        else:
            gradient_tV = log_p_tV.exp().mul_(-g_t1)
        gradient_tV.scatter_add_(-1, targets_t.unsqueeze(-1), g_t1)
        return gradient_tV.to(ctx.dtype), None, None, None, None, None
