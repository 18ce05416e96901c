"""When a run is stopped: its losses are not finite step after step, or it trains nothing."""

from __future__ import annotations

from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.run import JobConfig
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


def stop_if_empty(step: int, num_in_a_row: int, config: OnlineConfig) -> None:
    """Look at how many steps in a row had nothing to train.

    Raises:
        RunError: As many as the job allows, or more.
    """
    if num_in_a_row >= config.empty_steps_to_stop:
        raise RunError(
            f"step {step}: nothing was left to train in {num_in_a_row} steps in a row "
            f"(empty_steps_to_stop is {config.empty_steps_to_stop}): rewards gave None for too "
            "many rollouts, dynamic sampling found no group whose scores differ, or all were cut "
            "off (algorithm.truncated: mask)"
        )
