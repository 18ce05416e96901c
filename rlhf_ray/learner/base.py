"""What every trained role's learner does beside its own loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.config.base import LearnerConfig
from rlhf_ray.learner.engine import EngineBuilder, Residency
from rlhf_ray.learner.reach import freeze_unreached, require_reached
from rlhf_ray.learner.scoring import fitted_update
from rlhf_ray.learner.update import MicroBatchLoss, Preparation, UpdateSettings, run_update
from rlhf_ray.models.check import settle
from rlhf_ray.models.checked import CheckedModel
from rlhf_ray.packing import UpdatePlan


class Learner(ABC):
    """One rank's share of a trained role.

    Attributes:
        model: What the engine trains.
        engine: What holds it.
    """

    model: CheckedModel

    def __init__(
        self,
        config: LearnerConfig,
        builder: EngineBuilder,
        settings: UpdateSettings,
        *,
        total_steps: int,
        seed: int,
    ) -> None:
        """Load the model, hand it to an engine, and let it run as it is right.

        Raises:
            ConfigError: It cannot be loaded, does not agree with itself, or what should train
                cannot.
        """
        torch.manual_seed(seed)
        self.config, self.builder, self.device = config, builder, builder.device
        self._settings = settings
        with builder.loading():
            self.model = self._load()
        self.model.device = self.device
        if not builder.shards_weights:
            freeze_unreached(self.model)
        self.engine = builder.train(self.model.train(), total_steps=total_steps)
        if builder.shards_weights:
            require_reached(self.model)
        settle(self.model, config, self.device)

    @abstractmethod
    def _load(self) -> Any:
        """The model as the configuration has it."""

    @property
    def residency(self) -> Residency:
        """Where the model is."""
        return self.engine.residency

    def _update(
        self,
        rows: Sequence[Any],
        lengths_B: Sequence[int],
        plan: UpdatePlan,
        loss_of: MicroBatchLoss,
        prepare: Preparation | None = None,
    ) -> dict[str, float]:
        """Take every optimiser step of a plan; see `run_update`."""
        plan = fitted_update(plan, lengths_B, self.config, self.model)
        return run_update(self.engine, rows, plan, loss_of, self._settings, prepare=prepare)

    def save(self, folder: Path) -> None:
        """Write everything that training goes on from."""
        self.engine.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.engine.load(folder)

    def close(self) -> None:
        """Release the model."""
        self.engine.close()
        self.builder.close()
