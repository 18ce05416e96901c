"""The attention functions of this project, by the names under which transformers knows them.

`varlen_attn` is causal attention in half precision on a GPU by PyTorch's own FlashAttention kernel,
whose name there it has. Packed sequences stay end to end, and a padded rectangle is so many
sequences of one length: no mask, no copy of the states, no heads of keys repeated. SDPA would do in
its place, but on a GPU it may choose cuDNN, which builds a graph for each shape, and nearly every
micro-batch has a shape of its own.

Where a packed prompt stands once for several sequences, what goes on from it in each is one call
more, with keys gathered from the row: the prompt's and its own, of which there are more than
queries.

`packed_sdpa` is causal attention over packed sequences by PyTorch's SDPA, on any device and in any
dtype. Projections run on the packed row, without padding; only attention itself sees a rectangle,
gathered from the row. With padding on the right, causality alone keeps it from every real token, so
no mask is built and PyTorch's fast kernels apply.

`masked_sdpa` is transformers' own, which takes a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

from rlhf_ray.models.packed import Packing, Part, take_rows

VARLEN, PACKED_SDPA, MASKED_SDPA = "varlen_attn", "packed_sdpa", "masked_sdpa"
# Those that take a prompt which stands once.
SHARING = (VARLEN, PACKED_SDPA)
# What the kernel is compiled for: mha_varlen_fwd in PyTorch's flash_attn/flash_api.cpp.
CAPABILITY = (8, 0)
MAX_HEAD_SIZE, HEAD_SIZE_STEP = 256, 8
# Of the keywords that models hand to attention functions, those that leave the scores alone.
_KNOWN = frozenset({
    "cu_seq_lens_k", "cu_seq_lens_q", "dropout", "is_causal", "labels", "logits_to_keep",
    "max_length_k", "max_length_q", "output_attentions", "output_hidden_states",
    "output_router_logits", "packing", "position_ids", "return_dict", "scaling", "sliding_window",
    "use_cache",
})  # fmt: skip


def register() -> None:
    """Let models take these functions, and SDPA the same kernels in every process.

    cuDNN's attention builds a graph for each shape. vLLM turns it off where it is imported: roles
    in whose processes it is not would compute by another kernel than those in whose it is.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    # Compiled layers call them as they are: a layout's numbers are another's at each pass.
    AttentionInterface.register(VARLEN, torch.compiler.disable(varlen_attention))
    AttentionInterface.register(PACKED_SDPA, torch.compiler.disable(packed_sdpa))
    AttentionInterface.register(MASKED_SDPA, masked_sdpa)
    AttentionMaskInterface.register(MASKED_SDPA, sdpa_mask)
    torch.backends.cuda.enable_cudnn_sdp(False)


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
    _require_unmasked(VARLEN, query, key, attention_mask, packing)
    _refuse_unknown(VARLEN, others)
    if dropout:
        raise ValueError(f"{VARLEN} has no dropout, got {dropout}")
    num_rows, _, num_tokens, head_size = query.shape
    width = _width(max(head_size, value.shape[-1]))
    states = (_laid_end_to_end(states, width) for states in (query, key, value))
    query_NHD, key_NHD, value_NHD = states
    outputs = []
    for part in (packing or _rows_as_packing(query)).parts:
        output_NHD = varlen_attn(
            _taken(query_NHD, part.queries),
            _taken(key_NHD, part.keys),
            _taken(value_NHD, part.keys),
            part.queries.cu_lens,
            part.keys.cu_lens,
            part.queries.max_len,
            part.keys.max_len,
            scale=head_size**-0.5 if scaling is None else scaling,
            # The kernel counts the tokens on the left of each, transformers the token as well.
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            enable_gqa=True,
        )
        assert isinstance(output_NHD, torch.Tensor)  # nothing beside it was asked for
        outputs.append(output_NHD)
    output_NHD = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output_NHD.unflatten(0, (num_rows, num_tokens)).narrow(-1, 0, value.shape[-1]), None


def _width(head_size: int) -> int:
    """The head size that the kernel works on."""
    if head_size > MAX_HEAD_SIZE:
        raise ValueError(f"{VARLEN} takes heads of up to {MAX_HEAD_SIZE}, got {head_size}")
    return -(-head_size // HEAD_SIZE_STEP) * HEAD_SIZE_STEP


def _rows_as_packing(query: torch.Tensor) -> Packing:
    """The rows of a rectangle as sequences of one length.

    Padding stands on the right, where no token of its sequence looks: it may be one of it.
    """
    num_rows, _, max_len, _ = query.shape
    end = num_rows * max_len
    cu_lens = torch.arange(0, end + 1, max_len, dtype=torch.int32, device=query.device)
    return Packing(cu_lens=cu_lens, max_len=max_len, num_tokens=end)


def _laid_end_to_end(states: torch.Tensor, width: int) -> torch.Tensor:
    """[B, heads, T, size] -> [B x T, heads, width], zeros behind; a view where there are none."""
    if states.shape[-1] < width:
        states = F.pad(states, (0, width - states.shape[-1]))
    return states.transpose(1, 2).flatten(0, 1)


def _taken(states_NHD: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Those of some sequences, end to end; a view where they lie so."""
    if isinstance(packing.index, torch.Tensor):
        return take_rows(states_NHD, packing.index)
    return states_NHD.narrow(0, packing.index.start, packing.num_tokens)


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
    """Attend within each sequence, on any device; as `varlen_attention`, but with dropout.

    Raises:
        ValueError: With a mask, or with what would change the scores (soft caps, sinks, biases).
    """
    _require_unmasked(PACKED_SDPA, query, key, attention_mask, packing)
    _refuse_unknown(PACKED_SDPA, others)
    settings: dict[str, Any] = {
        "dropout": dropout,
        "scaling": scaling,
        "window": sliding_window,
    }
    if packing is None:
        [part] = _rows_as_packing(query).parts
        return _sdpa(query, key, value, part, **settings).transpose(1, 2), None
    outputs = []
    for part in packing.parts:
        keys, values = (_pad(states, part.keys) for states in (key, value))
        output = _sdpa(_pad(query, part.queries), keys, values, part, **settings)
        outputs.append(take_rows(output.transpose(1, 2).flatten(0, 1), part.queries.to_packed))
    return torch.cat(outputs).unsqueeze(0), None


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    part: Part,
    *,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Of rectangles of a part's sequences: [B, heads, queries, size]."""
    num_groups = query.shape[1] // key.shape[1]
    if query.is_cuda and num_groups > 1:
        # In float32 no kernel takes fewer heads of keys, and scores of T x T would be computed
        # (https://github.com/pytorch/pytorch/pull/191085).
        key, value = (states.repeat_interleave(num_groups, dim=1) for states in (key, value))
    if window is not None and window >= part.keys.max_len:
        window = None
    is_plain = part.is_square and window is None
    mask = None if is_plain else part.bias(window, query.dtype)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_plain,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _pad(states: torch.Tensor, packing: Packing) -> torch.Tensor:
    """[1, heads, N, size] -> [B, heads, max_len, size]."""
    return take_rows(states[0].transpose(0, 1), packing.to_padded).transpose(1, 2)


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

    _refuse_unknown(MASKED_SDPA, others)
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, **others
    )
    return output


def _refuse_unknown(name: str, keywords: Mapping[str, Any]) -> None:
    """Refuse what would change the scores: soft caps, sinks, biases."""
    unknown = [key for key, value in keywords.items() if value is not None and key not in _KNOWN]
    if unknown:
        raise ValueError(f"{name} knows nothing of {', '.join(sorted(unknown))}")


def _require_unmasked(
    name: str,
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Packing | None,
) -> None:
    """Refuse a mask, and queries and keys of other tokens than the layout's.

    On a GPU a kernel that is led beyond a tensor reads foreign memory, or ends the process.
    """
    if attention_mask is not None:
        raise ValueError(f"{name} takes no attention mask")
    num_tokens = query.shape[2] if packing is None else packing.num_tokens
    if not query.shape[2] == key.shape[2] == num_tokens:
        raise ValueError(
            f"{name} takes queries and keys of the same {num_tokens} tokens, got "
            f"{query.shape[2]} queries and {key.shape[2]} keys"
        )
