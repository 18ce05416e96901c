"""A decoder's pass over a layout: hidden states, and the load of its experts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_ray.errors import ConfigError
from rlhf_ray.models.batch import Layout
from rlhf_ray.models.modes import ForwardMode


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


def decoder_of(lm: Any) -> Any:
    """The part of a model that makes hidden states of tokens.

    Raises:
        ConfigError: It has no such part.
    """
    base = base_of(lm)
    return base.get_submodule(decoder_name(base))


def decoder_name(base: Any) -> str:
    """What a model calls the part of it that makes hidden states of tokens.

    Raises:
        ConfigError: It has no such part.
    """
    children: dict[str, nn.Module] = dict(base.named_children())
    if base.base_model_prefix in children:
        return str(base.base_model_prefix)
    # Of families that say otherwise (Llama 4: `language_model`, for its `model`).
    models = [name for name, child in children.items() if isinstance(child, PreTrainedModel)]
    if len(models) != 1:
        raise ConfigError(
            f"{type(base).__name__} cannot be run: it has no decoder apart from its head"
        )
    return models[0]


def vocabulary_of(lm: Any) -> int:
    """How many words a causal language model has."""
    return int(base_of(lm).config.get_text_config().vocab_size)


def decode(
    decoder: nn.Module, layout: Layout, mode: ForwardMode, *, with_router_loss: bool = False
) -> Decoded:
    """Run `decoder`, a transformers model without its head, as `mode` says."""
    packing = layout.packing
    keywords: dict[str, Any] = {"use_cache": False}
    if mode.with_mask:
        keywords["attention_mask"] = layout.attention_mask
    else:
        keywords["position_ids"] = layout.position_ids
    if packing is not None:
        keywords["packing"] = packing
    if packing is not None and not packing.shared:
        keywords |= {
            "cu_seq_lens_q": packing.cu_lens,
            "cu_seq_lens_k": packing.cu_lens,
            "max_length_q": packing.max_len,
            "max_length_k": packing.max_len,
        }
    if with_router_loss:
        keywords["output_router_logits"] = True
    with rope_by_sequence(decoder, layout) if mode.rope_alone else nullcontext():
        output = decoder(input_ids=layout.input_ids, **_accepted(decoder, keywords))
    return Decoded(
        hidden_ND=output.last_hidden_state.flatten(0, 1),
        router_loss=_router_loss(decoder.config, output.router_logits, layout)
        if with_router_loss
        else None,
    )


def _accepted(decoder: nn.Module, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """What `forward` takes: older families know nothing of positions or of packing."""
    parameters = inspect.signature(decoder.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in keywords.items() if takes_all or name in parameters}


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

    Source: Switch Transformer, https://arxiv.org/abs/2101.03961, eqs. 4 to 6. Padding is left out,
    and a shared prompt counts as often as it is shared.
    """
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    text = config.get_text_config()
    num_experts = getattr(text, "num_local_experts", None) or text.num_experts
    loss: torch.Tensor = load_balancing_loss_func(
        router_logits, num_experts, text.num_experts_per_tok, layout.num_uses
    )
    return loss


@contextmanager
def rope_by_sequence(decoder: nn.Module, layout: Layout) -> Iterator[None]:
    """While this is open, `decoder` computes rotary embeddings sequence by sequence.

    Families with stretched positions (LongRoPE, https://arxiv.org/abs/2402.13753; dynamic NTK)
    choose frequencies by the longest sequence of a call, and keep what they chose for the next.
    """
    found = list(_rotary_modules(decoder))
    for module in found:
        module.forward = partial(_by_sequence, module, module.forward, layout)
    try:
        yield
    finally:
        for module in found:
            del module.forward


def _rotary_modules(decoder: nn.Module) -> Iterator[Any]:
    for module in decoder.modules():
        parameters = inspect.signature(module.forward).parameters
        has_frequencies = any(name.endswith("inv_freq") for name, _ in module.named_buffers())
        is_leaf = not any(True for _ in module.children())
        if is_leaf and has_frequencies and "position_ids" in parameters:
            yield module


def _by_sequence(
    module: Any,
    forward: Any,
    layout: Layout,
    states: Tensor,
    position_ids: Tensor,
    *arguments: Any,
    **keywords: Any,
) -> Any:
    if layout.packing is None:
        parts, dim = position_ids.split(1, dim=-2), 0
    else:
        parts, dim = position_ids.split(layout.lens_B.tolist(), dim=-1), 1
    results = []
    for part in parts:
        _forget_longer(module)
        results.append(forward(states, part, *arguments, **keywords))
    if isinstance(results[0], Tensor):
        return torch.cat(results, dim=dim)
    return tuple(torch.cat(tensors, dim=dim) for tensors in zip(*results, strict=True))


def _forget_longer(module: Any) -> None:
    """What dynamic NTK kept of a longer sequence, it would use for this one too."""
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        prefix = name.removesuffix("max_seq_len_cached")
        original = getattr(module, f"{prefix}original_inv_freq", None)
        if original is not None:
            setattr(module, name, module.original_max_seq_len)
            setattr(
                module,
                f"{prefix}inv_freq",
                original.to(module.get_buffer(f"{prefix}inv_freq").device),
            )
