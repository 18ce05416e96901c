"""When a run has diverged: its loss or gradient is not finite step after step."""

from __future__ import annotations

from rlhf_ray.config.base import JobConfig
from rlhf_ray.errors import RunError


class DivergenceGuard:
    """Counts the steps in a row in which an optimiser step was skipped.

    Attributes:
        num_in_a_row: Up to now; what a checkpoint holds of it.
    """

    def __init__(self, config: JobConfig) -> None:
        """None yet; the limit is the job's."""
        self.limit, self.run_dir = config.nonfinite_steps_to_stop, config.run_dir
        self.num_in_a_row = 0

    def after(self, step: int, num_skipped: float) -> None:
        """Take note of a step.

        Raises:
            RunError: The limit is reached.
        """
        self.num_in_a_row = self.num_in_a_row + 1 if num_skipped else 0
        if self.num_in_a_row >= self.limit:
            raise RunError(
                f"step {step}: loss or gradient was not finite in {self.limit} steps in a row; "
                f"what they were to learn from is in {self.run_dir}/skipped"
            )
