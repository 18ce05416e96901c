"""When a run has diverged: its loss or gradient is not finite step after step."""

from __future__ import annotations

from rlhf_ray.config.base import JobConfig
from rlhf_ray.errors import RunError
from rlhf_ray.roles import Metrics


def stop_if_diverged(step: int, metrics: Metrics, config: JobConfig) -> None:
    """Look at what the trained roles say of their optimiser steps.

    Raises:
        RunError: One of them skipped as many in a row as the job allows, or more.
    """
    limit = config.nonfinite_steps_to_stop
    for name, num_skipped in metrics.items():
        role, _, leaf = name.rpartition("/")
        if leaf == "skipped_in_a_row" and num_skipped >= limit:
            raise RunError(
                f"step {step}: loss or gradient was not finite in {num_skipped:.0f} optimiser "
                f"steps in a row ({role}; nonfinite_steps_to_stop is {limit}); what they were to "
                f"learn from is in {config.run_dir}/skipped"
            )
