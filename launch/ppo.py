"""The command `rlhf-ray ppo`."""

from __future__ import annotations

from launch import online
from rlhf_ray.config.online import OnlineConfig


def run(config: OnlineConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    return online.run(config, "ppo")
