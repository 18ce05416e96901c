"""Attention by PyTorch's SDPA, on any device and in any dtype.

`packed_sdpa` is causal attention over packed sequences. Projections run on the packed row, without
padding; only attention itself sees a rectangle, gathered from the row. With padding on the right,
causality alone keeps it from every real token, so no mask is built and PyTorch's fast kernels
apply. `masked_sdpa` is transformers' own, which takes a mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from rlhf_ray.models.attention_inputs import refuse_unknown, require_unmasked
from rlhf_ray.models.batch import Packing

NAME = "packed_sdpa"
MASKED_NAME = "masked_sdpa"


def packed_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each sequence.

    Args:
        module: The attention layer; unused.
        query: [B, heads, T, head size]; B is 1 where `packing` is given.
        key: As `query`, with the key-value heads.
        value: As `key`.
        attention_mask: Must be None.
        dropout: Of attention weights.
        scaling: Of the scores.
        sliding_window: Tokens that each token sees, itself included.
        packing: Where the sequences lie; None for a padded rectangle.
        others: What other attention functions take.

    Returns:
        [B, T, heads, head size], and no weights.

    Raises:
        ValueError: With a mask, or with what would change the scores (soft caps, sinks, biases).
    """
    require_unmasked(NAME, query, key, attention_mask, packing)
    refuse_unknown(NAME, others)
    if packing is not None:
        query, key, value = (_pad(states, packing) for states in (query, key, value))
    num_groups = query.shape[1] // key.shape[1]
    if query.is_cuda and num_groups > 1:
        # In float32 no kernel takes fewer heads of keys, and scores of T x T would be computed
        # (https://github.com/pytorch/pytorch/pull/191085).
        key, value = (states.repeat_interleave(num_groups, dim=1) for states in (key, value))
    num_tokens = query.shape[2]
    mask = None
    if sliding_window is not None and sliding_window < num_tokens:
        index = torch.arange(num_tokens, device=query.device)
        distance = index[:, None] - index[None, :]
        mask = (distance >= 0) & (distance < sliding_window)
    output = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    ).transpose(1, 2)
    if packing is not None:
        output = output.flatten(0, 1)[packing.to_packed].unsqueeze(0)
    return output, None


def _pad(states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """[1, heads, N, size] -> [B, heads, max_len, size]."""
    return states[0].transpose(0, 1)[packing.to_padded].transpose(1, 2)


def masked_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' `sdpa`, which does without a word what it does not know.

    Raises:
        ValueError: With what would change the scores (soft caps, sinks, biases).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    refuse_unknown(MASKED_NAME, others)
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **others
    )
    return output
