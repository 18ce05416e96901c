"""Where a command's metrics go: the run's folder, the screen, W&B, and Ray's agents."""

from __future__ import annotations

from pathlib import Path

from actors.cluster.ray_metrics import RaySink
from rlhf_ray.config.base import JobConfig
from rlhf_ray.loops.checkpoints import Checkpoint
from rlhf_ray.metrics import MetricsLog, open_metrics


def run_log(config: JobConfig, *, job: str, checkpoint: Checkpoint | None = None) -> MetricsLog:
    """The log of a run on the cluster that this process is connected to.

    Args:
        config: Of the job.
        job: Its name.
        checkpoint: What the run goes on from.
    """
    return open_metrics(
        config,
        job=job,
        resumed_step=None if checkpoint is None else checkpoint.step,
        beside=[RaySink(run=Path(config.run_dir).name, job=job)],
    )
