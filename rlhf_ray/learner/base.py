"""What every trained role's learner does beside its own loss."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.learner.engine import TrainingEngine


class Learner:
    """One rank's share of a trained role.

    Attributes:
        engine: Set by the role's own constructor.
    """

    engine: TrainingEngine

    def save(self, folder: Path) -> None:
        """Write everything that training goes on from."""
        self.engine.save(folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""
        self.engine.load(folder)

    def close(self) -> None:
        """Release the model."""
        self.engine.close()
