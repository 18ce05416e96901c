"""The ways in which a model can be run over a batch, the fastest first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.models import sdpa
from rlhf_ray.models.load import attention_functions


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
