"""The ways in which a model can be run: dtype, attention, layout; the fastest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from transformers.utils import is_flash_attn_2_available

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models import sdpa, varlen


def resolve_dtype(
    name: Literal["auto", "float32", "bfloat16"], device: torch.device
) -> torch.dtype:
    """`auto` is bfloat16 on GPU and float32 on CPU, where bfloat16 is slow."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return torch.float32 if name == "float32" else torch.bfloat16


def attention_functions(config: ModelConfig, device: torch.device) -> tuple[str, ...]:
    """Those that need no mask and run on the device, the one to prefer first.

    Raises:
        ConfigError: The one that was asked for by name does not run here.
    """
    flash = "flash_attention_2"  # of the package flash-attn, through transformers
    runs_flash = (
        device.type == "cuda"
        and resolve_dtype(config.dtype, device) is torch.bfloat16
        and torch.cuda.get_device_capability(device) >= varlen.CAPABILITY
    )
    if config.attention == "auto":
        return (varlen.NAME, sdpa.NAME) if runs_flash else (sdpa.NAME,)
    if config.attention != sdpa.NAME and not runs_flash:
        raise ConfigError(
            f"model.attention is {config.attention}, which needs a GPU of compute capability "
            f"{'.'.join(map(str, varlen.CAPABILITY))} or above and dtype bfloat16; set "
            f"{sdpa.NAME} or auto"
        )
    # The package's name alone does not say that it is version 2.
    if config.attention == flash and not is_flash_attn_2_available():
        raise ConfigError(
            f"model.attention is {flash}, which needs the package flash-attn, version 2; set "
            f"{varlen.NAME}, which needs none, or auto"
        )
    return (config.attention,)


def register_attention() -> None:
    """Let models take our attention functions by name, and SDPA the same kernels in every process.

    cuDNN's attention builds a graph for each shape. vLLM turns it off where it is imported: roles
    in whose processes it is not would compute by another kernel than those in whose it is.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(varlen.NAME, varlen.varlen_attention)
    AttentionInterface.register(sdpa.NAME, sdpa.packed_sdpa)
    AttentionInterface.register(sdpa.MASKED_NAME, sdpa.masked_sdpa)
    AttentionMaskInterface.register(sdpa.MASKED_NAME, sdpa_mask)
    torch.backends.cuda.enable_cudnn_sdp(False)


@dataclass(frozen=True, kw_only=True)
class ForwardMode:
    """How a batch goes through a model.

    Attributes:
        packed: Sequences lie end to end; else they make a rectangle.
        attention: transformers' name of the attention function.
        with_mask: The model gets an attention mask and counts positions by itself; else it gets
            positions, and the padding on the right is kept out by causality alone.
        rope_alone: Rotary embeddings see one sequence at a time: some families choose frequencies
            by the longest that they see.
        own_head: A classifier's own `forward` picks the token that is scored.
    """

    packed: bool
    attention: str
    with_mask: bool = False
    rope_alone: bool = False
    own_head: bool = False

    def __str__(self) -> str:
        layout = "packed" if self.packed else "padded"
        mask = ", with an attention mask" if self.with_mask else ""
        rope = ", rotary embeddings by sequence" if self.rope_alone else ""
        head = ", the model's own choice of the token" if self.own_head else ""
        return f"layout {layout}, attention {self.attention}{mask}{rope}{head}"


Layouts = Literal["auto", "packed", "padded"]


def forward_modes(
    config: ModelConfig, layout: Layouts, device: torch.device
) -> tuple[ForwardMode, ...]:
    """Those that the configuration allows, the one to prefer first."""
    return tuple(
        mode
        for mode in all_modes(attention_functions(config, device))
        if layout in ("auto", "packed" if mode.packed else "padded")
        and (config.attention == "auto" or mode.attention == config.attention)
    )


def all_modes(functions: Sequence[str]) -> Iterator[ForwardMode]:
    """Every one; `functions` are the attention functions that need no mask, the best first."""
    for attention in functions:
        for packed in (True, False):
            for rope_alone in (False, True):
                yield ForwardMode(packed=packed, attention=attention, rope_alone=rope_alone)
    for attention in (sdpa.MASKED_NAME, "eager"):
        yield ForwardMode(packed=False, attention=attention, with_mask=True)


def needs_mask(layer_types: Sequence[str]) -> bool:
    """Whether a layer's attention sees less than causality and a window let it see.

    The check's sequences may be too short to show it (Llama 4 attends within chunks of 8,192).
    """
    plain = {"full_attention", "sliding_attention", "linear_attention"}
    return any(kind.endswith("_attention") and kind not in plain for kind in layer_types)
