"""No model drops anything out: what every job takes for the mode of training.

transformers' layers read `self.training` for two things: whether to be random (dropout of modules
and of functions, layers that are left out, jitter of routers), and whether to compute activations
again in the backward pass. So a model stays in evaluation mode while it is trained, but for layers
that are checkpointed, around their own forward pass, and for the dropout of adapters, which the
configuration of the job asks for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self

from torch import nn
from torch.utils.checkpoint import checkpoint


class WithoutDropout(nn.Module):
    """Base of the modules that roles train; those below it never are random."""

    def train(self, mode: bool = True) -> Self:
        """Training mode for itself, checkpointed layers and the dropout of adapters alone."""
        super().train(mode)
        if mode:
            for child in self.children():
                child.eval()
            for module in (*adapter_dropouts(self), *_checkpointed(self)):
                module.training = True
        return self


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
