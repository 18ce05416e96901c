"""What the check of a model asks of the modules that roles run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rlhf_ray.config.base import ModelConfig
from rlhf_ray.models import sdpa
from rlhf_ray.models.dropout import WithoutDropout
from rlhf_ray.models.modes import ForwardMode, Layouts, forward_modes, needs_mask
from rlhf_ray.types import IntArray


class CheckedModel(WithoutDropout):
    """A module around a transformers model, whose results can be had in two ways.

    Attributes:
        mode: How it runs.
        device: Where its batches go.
        outcome: What is read of a sequence, in words with a unit.
    """

    mode = ForwardMode(packed=True, attention=sdpa.NAME)
    device = torch.device("cpu")
    outcome = ""

    @property
    def padded(self) -> bool:
        """Whether its batches are rectangles."""
        return not self.mode.packed

    def modes(self, config: ModelConfig, layout: Layouts) -> Sequence[ForwardMode]:
        """The ways that the configuration allows, the one to prefer first."""
        text = self.transformer().config.get_text_config()
        return [
            mode
            for mode in forward_modes(config, layout, self.device)
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
