"""A decoder's pass over a layout: hidden states, and the load of its experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlhf_ray.errors import ConfigError
from rlhf_ray.models.batch import Layout


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """One pass.

    Attributes:
        hidden_ND: Final hidden states of the N flat positions of the layout.
        router_loss: See `_router_loss`; None where it was not asked for.
    """

    hidden_ND: torch.Tensor
    router_loss: torch.Tensor | None


def base_of(lm: Any) -> Any:
    """The transformers model itself, whether or not adapters are wrapped around it."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


# Layers that know where the sequences of a packed row lie.
_PLAIN_ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})


def mixing_layers(decoder: Any) -> str:
    """What kind of layers would carry one packed sequence into the next; empty for none.

    State spaces, convolutions and linear attention run along the row, whatever lies in it.
    """
    kinds = set(getattr(decoder.config.get_text_config(), "layer_types", None) or ())
    if others := sorted(kinds - _PLAIN_ATTENTION):
        return ", ".join(others)
    return "recurrence" if getattr(decoder, "_is_stateful", False) else ""


def decode(decoder: nn.Module, layout: Layout, *, with_router_loss: bool = False) -> Decoded:
    """Run `decoder`, a transformers model without its head.

    Raises:
        ConfigError: A packed layout, and layers that would mix its sequences.
    """
    packing = layout.packing
    keywords: dict[str, Any] = {}
    if packing is not None:
        if mixing := mixing_layers(decoder):
            config: Any = decoder.config
            raise ConfigError(
                f"layout must be padded for {config.model_type}, whose layers "
                f"({mixing}) would mix packed sequences, got packed"
            )
        keywords = {
            "packing": packing,
            "cu_seq_lens_q": packing.cu_lens,
            "cu_seq_lens_k": packing.cu_lens,
            "max_length_q": packing.max_len,
            "max_length_k": packing.max_len,
        }
    if with_router_loss:
        keywords["output_router_logits"] = True
    output = decoder(
        input_ids=layout.input_ids, position_ids=layout.position_ids, use_cache=False, **keywords
    )
    return Decoded(
        hidden_ND=output.last_hidden_state.flatten(0, 1),
        router_loss=_router_loss(decoder.config, output.router_logits, layout)
        if with_router_loss
        else None,
    )


def require_experts(config: Any) -> None:
    """Refuse the load-balancing loss of a model that has none.

    Raises:
        ConfigError: No mixture of experts.
    """
    if not hasattr(config.get_text_config(), "router_aux_loss_coef"):
        raise ConfigError(
            f"router_aux_loss_coef must be 0 for {config.model_type}: it has no load-balancing "
            "loss of experts"
        )


def _router_loss(config: Any, router_logits: Any, layout: Layout) -> torch.Tensor:
    """Num. experts x sum over experts of (share of tokens x mean probability).

    Source: Switch Transformer, https://arxiv.org/abs/2101.03961, eqs. 4 to 6. Padding is left out.
    """
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    text = config.get_text_config()
    num_experts = getattr(text, "num_local_experts", None) or text.num_experts
    loss: torch.Tensor = load_balancing_loss_func(
        router_logits, num_experts, text.num_experts_per_tok, layout.attention_mask
    )
    return loss
