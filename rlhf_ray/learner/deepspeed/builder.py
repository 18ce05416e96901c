"""From a section of the configuration to DeepSpeed around one model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch

from rlhf_ray.config.base import ForwardConfig, LearnerConfig
from rlhf_ray.learner.deepspeed.drive import DriveFolder, own_folder
from rlhf_ray.learner.deepspeed.engine import FrozenEngine, ZeroEngine
from rlhf_ray.learner.deepspeed.settings import deepspeed_config
from rlhf_ray.models import sharding
from rlhf_ray.models.modes import resolve_dtype


class DeepSpeedBuilder:
    """See `EngineBuilder`.

    Attributes:
        config: What the model is held by; where that is a drive, in a folder of its own.
    """

    def __init__(self, config: ForwardConfig, device: torch.device) -> None:
        """Make room on the drive, where the model is offloaded to one.

        Raises:
            ConfigError: What DeepSpeed needs for it is not there.
        """
        self.device, self.shards_weights = device, config.zero.stage == 3
        self._folder: DriveFolder | None
        self.config, self._folder = own_folder(config)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Under ZeRO-3 each rank keeps its part of a weight from the moment it is read."""
        if not self.shards_weights:
            yield
            return
        from transformers.integrations import HfDeepSpeedConfig

        # DeepSpeed makes every weight float32 unless its own settings say bfloat16.
        bf16 = resolve_dtype(self.config.model.dtype, self.device) is torch.bfloat16
        # transformers holds it by a weak reference: it works for as long as this variable lives.
        active = HfDeepSpeedConfig(deepspeed_config(self.config.zero, bf16=bf16, max_grad_norm=0.0))
        try:
            yield
        finally:
            del active

    def train(self, module: torch.nn.Module, *, total_steps: int) -> ZeroEngine:
        """Train it."""
        assert isinstance(self.config, LearnerConfig)
        return ZeroEngine(module, self.config, total_steps=total_steps, device=self.device)

    def freeze(self, module: torch.nn.Module) -> FrozenEngine:
        """Only read it."""
        return FrozenEngine(module, self.config, device=self.device)

    def close(self) -> None:
        """Remove the folder on the drive."""
        if self._folder is not None:
            self._folder.close()


class Zero3Sharding:
    """Parameters as ZeRO-3 leaves them: each rank has a part, and the whole's size is on record."""

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether ZeRO-3 has taken it over."""
        return hasattr(tensor, "ds_id")

    def shape(self, tensor: Any) -> tuple[int, ...]:
        """Of the whole."""
        return tuple(tensor.ds_shape)

    def gathered(self, tensors: Sequence[torch.Tensor]) -> AbstractContextManager[Any]:
        """Whole on every rank while it is open."""
        context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(tensors))
        return context

    def is_hook(self, hook: Callable[..., Any]) -> bool:
        """DeepSpeed's own functions."""
        return hook.__module__.startswith("deepspeed.")


sharding.register(Zero3Sharding())
