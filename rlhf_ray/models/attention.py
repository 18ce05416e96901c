"""Causal attention over packed sequences with PyTorch's own kernel, on any device.

Registered with transformers as `packed_sdpa`. Projections run on the packed row, without padding;
only attention itself sees a rectangle, gathered from the row. With padding on the right, causality
alone keeps it from every real token, so no mask is built and PyTorch's fast kernels apply.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from rlhf_ray.models.batch import Packing

NAME = "packed_sdpa"


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
    **unused: Any,
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
        unused: What other attention functions take.

    Returns:
        [B, T, heads, head size], and no weights.

    Raises:
        ValueError: With a mask or a soft cap on the scores, which this function cannot honour.
    """
    if attention_mask is not None or unused.get("softcap") is not None:
        raise ValueError(f"{NAME} takes no attention mask and no softcap on attention scores")
    if packing is not None:
        query, key, value = (_pad(states, packing) for states in (query, key, value))
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


def register() -> None:
    """Make `attn_implementation="packed_sdpa"` known to transformers."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_sdpa)
