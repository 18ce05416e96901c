"""Log-probabilities of given tokens from hidden states, a chunk of logits at a time.

[T, V] logits are the largest tensor of RLHF (32k tokens × 152k words in float32: 20 GB, and as much
again for the backward pass). Here at most `chunk_tokens` rows exist at once: each chunk is a
checkpoint that keeps its hidden states and computes its logits again in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


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

    def chunk_scores(hidden_tD: Tensor, targets_t: Tensor) -> tuple[Tensor, ...]:
        raw_tV = head(hidden_tD)
        logits_tV = raw_tV.to(torch.promote_types(raw_tV.dtype, torch.float32)) / temperature
        scores = [_logprobs(logits_tV, targets_t)]
        if with_entropy:
            scores.append(_entropy(logits_tV if entropy_gradient else logits_tV.detach()))
        if with_top:
            scores.append(logits_tV.detach().argmax(-1))
        return tuple(scores)

    chunks = [
        checkpoint(chunk_scores, hidden_tD, targets_t, use_reentrant=False)
        for hidden_tD, targets_t in zip(
            hidden_TD.split(chunk_tokens), targets_T.split(chunk_tokens), strict=True
        )
    ]
    logprobs_T, *others = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return TokenScores(
        logprobs_T=logprobs_T,
        entropy_T=others.pop(0) if with_entropy else None,
        top_T=others.pop(0) if with_top else None,
    )


def _logprobs(logits_tV: Tensor, targets_t: Tensor) -> Tensor:
    target_logits_t = logits_tV.gather(-1, targets_t.unsqueeze(-1)).squeeze(-1)
    return target_logits_t - torch.logsumexp(logits_tV, dim=-1)


def _entropy(logits_tV: Tensor) -> Tensor:
    # -Σ p log p = log Z - Σ p · logit. A word that is masked by -inf has p = 0 and counts 0, but
    # 0 · -inf is NaN, in the value and in the gradient.
    finite_tV = logits_tV.masked_fill(logits_tV.isneginf(), 0.0)
    mean_logit_t = (torch.softmax(logits_tV, dim=-1) * finite_tV).sum(-1)
    return torch.logsumexp(logits_tV, dim=-1) - mean_logit_t
