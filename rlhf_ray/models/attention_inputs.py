"""What transformers hands to an attention function, and what of it ours refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rlhf_ray.models.batch import Packing

# Of the keywords that models hand to attention functions, those that leave the scores alone.
_KNOWN = frozenset({
    "cu_seq_lens_k", "cu_seq_lens_q", "dropout", "is_causal", "labels", "logits_to_keep",
    "max_length_k", "max_length_q", "output_attentions", "output_hidden_states",
    "output_router_logits", "packing", "position_ids", "return_dict", "scaling", "sliding_window",
    "use_cache",
})  # fmt: skip


def refuse_unknown(name: str, keywords: Mapping[str, Any]) -> None:
    """Refuse what would change the scores: soft caps, sinks, biases.

    Raises:
        ValueError: Names them, and `name`, the attention function.
    """
    unknown = [key for key, value in keywords.items() if value is not None and key not in _KNOWN]
    if unknown:
        raise ValueError(f"{name} knows nothing of {', '.join(sorted(unknown))}")


def require_unmasked(
    name: str,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Packing | None,
) -> None:
    """Refuse a mask, and queries and keys of other tokens than the layout's.

    On a GPU a kernel that is led beyond a tensor reads foreign memory, or ends the process.

    Args:
        name: Of the attention function.
        query: [B, heads, T, head size].
        key: As `query`, with the key-value heads.
        attention_mask: What the model made of the layout's mask.
        packing: Where the sequences lie; None for a padded rectangle.

    Raises:
        ValueError: Says what was wanted and what was given.
    """
    if attention_mask is not None:
        raise ValueError(f"{name} takes no attention mask")
    num_tokens = query.shape[2] if packing is None else packing.num_tokens
    if not query.shape[2] == key.shape[2] == num_tokens:
        raise ValueError(
            f"{name} takes queries and keys of the same {num_tokens} tokens, got "
            f"{query.shape[2]} queries and {key.shape[2]} keys"
        )
