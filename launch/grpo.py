"""The command `rlhf-ray grpo`."""

from __future__ import annotations

import sys

from launch import cli
from launch.training import online
from rlhf_ray.config.online import OnlineConfig


def run(config: OnlineConfig) -> int:
    """Run the job on a pool of its own; returns the exit status."""
    return online.run(config)


if __name__ == "__main__":
    sys.exit(cli.main(["grpo", *sys.argv[1:]]))
