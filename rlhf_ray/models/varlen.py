"""Causal attention in half precision on a GPU, by PyTorch's own FlashAttention kernel.

Registered with transformers as `varlen_attn`, by which name PyTorch has it. Packed sequences stay
end to end, and a padded rectangle is so many sequences of one length: no mask, no copy of the
states, no heads of keys repeated. SDPA would do in its place, but on a GPU it may choose cuDNN,
which builds a graph for each shape, and nearly every micro-batch has a shape of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from rlhf_ray.models.attention_inputs import refuse_unknown, require_unmasked
from rlhf_ray.models.batch import Packing

NAME = "varlen_attn"
# What the kernel is compiled for: mha_varlen_fwd in PyTorch's flash_attn/flash_api.cpp.
CAPABILITY = (8, 0)
MAX_HEAD_SIZE, HEAD_SIZE_STEP = 256, 8


def varlen_attention(
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

    The kernel adds up the gradient of queries in any order: two backward passes differ in the last
    bits, unless `torch.use_deterministic_algorithms(True)` asks it for one order.

    Args:
        module: The attention layer; unused.
        query: [B, heads, T, head size]; B is 1 where `packing` is given.
        key: As `query`, with the key-value heads.
        value: As `key`; its head size may be another.
        attention_mask: Must be None.
        dropout: Of attention weights; must be 0.
        scaling: Of the scores; None for 1 / sqrt(head size).
        sliding_window: Tokens that each token sees, itself included.
        packing: Where the sequences lie; None for a padded rectangle.
        others: What other attention functions take.

    Returns:
        [B, T, heads, head size of `value`], and no weights.

    Raises:
        ValueError: With a mask or dropout, with what would change the scores (soft caps, sinks,
            biases), and for heads that are too large.
    """
    require_unmasked(NAME, query, key, attention_mask, packing)
    refuse_unknown(NAME, others)
    if dropout:
        raise ValueError(f"{NAME} has no dropout, got {dropout}")
    num_rows, _, num_tokens, head_size = query.shape
    width = _width(max(head_size, value.shape[-1]))
    cu_lens, max_len = _borders(query, packing)
    query_NHD, key_NHD, value_NHD = (
        _laid_end_to_end(states, width) for states in (query, key, value)
    )
    output_NHD = varlen_attn(
        query_NHD,
        key_NHD,
        value_NHD,
        cu_lens,
        cu_lens,
        max_len,
        max_len,
        scale=head_size**-0.5 if scaling is None else scaling,
        # The kernel counts the tokens on the left of each, transformers the token itself as well.
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        enable_gqa=True,
    )
    assert isinstance(output_NHD, torch.Tensor)  # nothing beside it was asked for
    output_BTHD = output_NHD.unflatten(0, (num_rows, num_tokens))
    return output_BTHD.narrow(-1, 0, value.shape[-1]), None


def _width(head_size: int) -> int:
    """The head size that the kernel works on."""
    if head_size > MAX_HEAD_SIZE:
        raise ValueError(f"{NAME} takes heads of up to {MAX_HEAD_SIZE}, got {head_size}")
    return -(-head_size // HEAD_SIZE_STEP) * HEAD_SIZE_STEP


def _borders(query: torch.Tensor, packing: Packing | None) -> tuple[torch.Tensor, int]:
    """Where each sequence begins, int32 [B + 1], and the longest.

    Padding stands on the right, where no token of its sequence looks: it may be one of it.
    """
    if packing is not None:
        return packing.cu_lens, packing.max_len
    num_rows, _, num_tokens, _ = query.shape
    end = num_rows * num_tokens
    starts = torch.arange(0, end + 1, num_tokens, dtype=torch.int32, device=query.device)
    return starts, num_tokens


def _laid_end_to_end(states: torch.Tensor, width: int) -> torch.Tensor:
    """[B, heads, T, size] -> [B x T, heads, width], zeros behind; a view where there are none."""
    if states.shape[-1] < width:
        states = F.pad(states, (0, width - states.shape[-1]))
    return states.transpose(1, 2).flatten(0, 1)
