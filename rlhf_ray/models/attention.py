"""Causal attention over packed sequences with PyTorch's own kernel, on any device.

Registered with transformers as `packed_sdpa`. Projections run on the packed row, without padding;
only attention itself sees a rectangle, gathered from the row. With padding on the right, causality
alone keeps it from every real token, so no mask is built and PyTorch's fast kernels apply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from rlhf_ray.models.batch import Packing

NAME = "packed_sdpa"
MASKED_NAME = "masked_sdpa"

# Of the keywords that models hand to attention functions, those that leave the scores alone.
_KNOWN = frozenset({
    "cu_seq_lens_k", "cu_seq_lens_q", "dropout", "is_causal", "labels", "logits_to_keep",
    "max_length_k", "max_length_q", "output_attentions", "output_hidden_states",
    "output_router_logits", "packing", "position_ids", "return_dict", "scaling", "sliding_window",
    "use_cache",
})  # fmt: skip


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
    if attention_mask is not None:
        raise ValueError(f"{NAME} takes no attention mask")
    _refuse_unknown(NAME, others)
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

    _refuse_unknown(MASKED_NAME, others)
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **others
    )
    return output


def _refuse_unknown(name: str, keywords: Mapping[str, Any]) -> None:
    unknown = [key for key, value in keywords.items() if value is not None and key not in _KNOWN]
    if unknown:
        raise ValueError(f"{name} knows nothing of {', '.join(sorted(unknown))}")


def register() -> None:
    """Make both known to transformers by their names."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, packed_sdpa)
    AttentionInterface.register(MASKED_NAME, masked_sdpa)
    AttentionMaskInterface.register(MASKED_NAME, sdpa_mask)


@contextmanager
def lost_windows(name: str) -> Iterator[set[int]]:
    """While this is open, collect windows that masks were asked to have and attention never got.

    Attention that is given no mask knows of a window by the keyword `sliding_window` alone. Some
    families (Phi-3.5-MoE, Qwen2-MoE) leave it to the mask, and would see everything without.

    Args:
        name: transformers' name of the attention function that the passes in between use.

    Yields:
        Filled when it closes: the windows, in tokens.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    masks, functions = AttentionMaskInterface._global_mapping, AttentionInterface._global_mapping
    if name not in functions:  # eager, which every family has its own of and gives a mask
        yield set()
        return
    make_mask, attend = masks.get(name), functions[name]
    asked: set[int | None] = set()
    given: set[int | None] = set()
    lost: set[int] = set()

    def asking(*arguments: Any, local_size: int | None = None, **keywords: Any) -> Any:
        asked.add(local_size)
        if make_mask is None:
            return None
        return make_mask(*arguments, local_size=local_size, **keywords)

    def attending(*arguments: Any, sliding_window: int | None = None, **keywords: Any) -> Any:
        given.add(sliding_window)
        return attend(*arguments, sliding_window=sliding_window, **keywords)

    AttentionMaskInterface.register(name, asking)
    AttentionInterface.register(name, attending)
    try:
        yield lost
    finally:
        AttentionInterface.register(name, attend)
        if make_mask is None:
            del masks[name]
        else:
            AttentionMaskInterface.register(name, make_mask)
        if given:  # else no layer attends
            lost.update(size for size in asked - given if size is not None)
