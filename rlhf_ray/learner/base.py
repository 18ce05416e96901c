"""What every trained role's learner does beside its own loss."""

from __future__ import annotations

from pathlib import Path

import torch

from rlhf_ray.config.base import LearnerConfig
from rlhf_ray.learner.engine import TrainingEngine
from rlhf_ray.learner.loading import declare_borrowed
from rlhf_ray.learner.reach import freeze_unreached, require_reached
from rlhf_ray.learner.residency import Residency
from rlhf_ray.models.check import settle
from rlhf_ray.models.checked import CheckedModel


class Learner:
    """One rank's share of a trained role.

    Attributes:
        engine: Set by the role's own constructor.
        model: Likewise: what the engine trains.
        residency: Where all of it is.
    """

    engine: TrainingEngine
    model: CheckedModel
    residency: Residency

    def _start(
        self,
        model: CheckedModel,
        config: LearnerConfig,
        *,
        total_steps: int,
        device: torch.device,
    ) -> None:
        """Hand a loaded model to DeepSpeed, and let it run as it is right.

        Raises:
            ConfigError: It does not agree with itself, or what should train cannot.
        """
        model.device = device
        is_whole = config.zero.stage != 3
        if is_whole:
            freeze_unreached(model)
        else:
            declare_borrowed(model)
        self.engine = TrainingEngine(model.train(), config, total_steps=total_steps)
        if not is_whole:
            require_reached(model)
        settle(model, config, device)
        self.residency = Residency(self, device, deepspeed=self.engine.engine)

    def save(self, folder: Path) -> None:
        """Write everything that training goes on from."""
        self.engine.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.engine.load(folder)

    def close(self) -> None:
        """Release the model."""
        self.engine.close()
