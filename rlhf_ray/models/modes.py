"""The ways in which a model can be run, the fastest first, and the base of modules that are.

No model drops anything out, in any job. transformers' layers read `self.training` for two things:
whether to be random (dropout of modules and of functions, layers that are left out, jitter of
routers), and whether to compute activations again in the backward pass. So a model stays in
evaluation mode while it is trained, but for layers that are checkpointed, around their own forward
pass, and for the dropout of adapters, which the configuration of the job asks for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.utils import is_flash_attn_2_available

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.models.attention import CAPABILITY, MASKED_SDPA, PACKED_SDPA, SHARING, VARLEN
from rlhf_ray.types import IntArray

# Tokens that the first two of a check's sequences begin with alike.
CHECKED_PROMPT = 5


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
        and torch.cuda.get_device_capability(device) >= CAPABILITY
    )
    if config.attention == "auto":
        return (VARLEN, PACKED_SDPA) if runs_flash else (PACKED_SDPA,)
    if config.attention != PACKED_SDPA and not runs_flash:
        raise ConfigError(
            f"model.attention is {config.attention}, which needs a GPU of compute capability "
            f"{'.'.join(map(str, CAPABILITY))} or above and dtype bfloat16; set "
            f"{PACKED_SDPA} or auto"
        )
    # The package's name alone does not say that it is version 2.
    if config.attention == flash and not is_flash_attn_2_available():
        raise ConfigError(
            f"model.attention is {flash}, which needs the package flash-attn, version 2; set "
            f"{VARLEN}, which needs none, or auto"
        )
    return (config.attention,)


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
        shares_prompts: A prompt that several packed sequences begin with stands once.
    """

    packed: bool
    attention: str
    with_mask: bool = False
    rope_alone: bool = False
    own_head: bool = False
    shares_prompts: bool = False

    def __str__(self) -> str:
        layout = "packed" if self.packed else "padded"
        mask = ", with an attention mask" if self.with_mask else ""
        rope = ", rotary embeddings by sequence" if self.rope_alone else ""
        head = ", the model's own choice of the token" if self.own_head else ""
        shared = ", prompts shared" if self.shares_prompts else ""
        return f"layout {layout}, attention {self.attention}{shared}{mask}{rope}{head}"


def forward_modes(config: ForwardConfig, device: torch.device) -> tuple[ForwardMode, ...]:
    """Those that the configuration allows, the one to prefer first."""
    layout, modes = config.layout, []
    for attention in attention_functions(config.model, device):
        if config.shares_prompts and attention in SHARING:
            modes.append(ForwardMode(packed=True, attention=attention, shares_prompts=True))
        modes += [
            ForwardMode(packed=packed, attention=attention, rope_alone=rope_alone)
            for packed in (True, False)
            for rope_alone in (False, True)
        ]
    if config.model.attention == "auto":
        masked = (MASKED_SDPA, "eager")
        modes += [ForwardMode(packed=False, attention=name, with_mask=True) for name in masked]
    return tuple(m for m in modes if layout in ("auto", "packed" if m.packed else "padded"))


def needs_mask(layer_types: Sequence[str]) -> bool:
    """Whether a layer's attention sees less than causality and a window let it see.

    The check's sequences may be too short to show it (Llama 4 attends within chunks of 8,192).
    """
    plain = {"full_attention", "sliding_attention", "linear_attention"}
    return any(kind.endswith("_attention") and kind not in plain for kind in layer_types)


class CheckedModel(nn.Module):
    """A module around a transformers model, whose results can be had in two ways, never random.

    Attributes:
        mode: How it runs.
        device: Where its batches go.
        outcome: What is read of a sequence, in words with a unit.
    """

    mode = ForwardMode(packed=True, attention=PACKED_SDPA)
    device = torch.device("cpu")
    outcome = ""

    @property
    def padded(self) -> bool:
        """Whether its batches are rectangles."""
        return not self.mode.packed

    def train(self, mode: bool = True) -> Self:
        """Training mode for itself, checkpointed layers and the dropout of adapters alone."""
        super().train(mode)
        if mode:
            for child in self.children():
                child.eval()
            for module in (*adapter_dropouts(self), *_checkpointed(self)):
                module.training = True
        return self

    def modes(self, config: ForwardConfig) -> Sequence[ForwardMode]:
        """The ways that the configuration allows, the one to prefer first."""
        text = self.transformer().config.get_text_config()
        return [
            mode
            for mode in forward_modes(config, self.device)
            if mode.with_mask or not needs_mask(getattr(text, "layer_types", None) or ())
        ]

    def use(self, mode: ForwardMode) -> None:
        """Run like this from now on; a family whose code has attention of its own keeps that.

        Raises:
            ValueError: transformers has no such attention for the model, or the model keeps its own
                where sequences are packed, which that would attend to as to one.
        """
        transformer = self.transformer()
        transformer.set_attn_implementation(mode.attention)
        taken = transformer.config.get_text_config()._attn_implementation
        if mode.packed and taken != mode.attention:
            raise ValueError(f"its code has attention of its own ({taken})")
        self.mode = replace(mode, attention=taken)

    def transformer(self) -> Any:
        """The transformers model in it whose attention is chosen."""
        raise NotImplementedError

    def outcomes(self, sequences_B: Sequence[IntArray], *, far: int = 0) -> list[torch.Tensor]:
        """What the role reads of each sequence, of one batch, as it runs now.

        The last sequence lies `far` positions further on.
        """
        raise NotImplementedError

    def own_outcome(self, input_ids_1T: torch.Tensor) -> torch.Tensor:
        """The same of one sequence, by the `forward` of the family."""
        raise NotImplementedError


def adapter_dropouts(model: nn.Module) -> Iterator[nn.Module]:
    """The dropouts of low-rank adapters, as `lora.dropout` has them."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and ".lora_dropout." in name:
            yield module


def checkpoint_layers(model: Any, *, use_reentrant: bool) -> None:
    """Compute activations of the layers again in the backward pass, without dropout then either."""
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    for layer in _checkpointed(model):
        layer._gradient_checkpointing_func = partial(  # type: ignore[assignment]
            _checkpoint, layer, use_reentrant=use_reentrant
        )


def _checkpointed(model: nn.Module) -> Iterator[nn.Module]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            yield module


def _checkpoint(
    layer: nn.Module, function: Callable[..., Any], *arguments: Any, use_reentrant: bool
) -> Any:
    def forward(*arguments: Any) -> Any:
        layer.training = False
        try:
            return function(*arguments)
        finally:
            layer.training = True

    return checkpoint(forward, *arguments, use_reentrant=use_reentrant)
