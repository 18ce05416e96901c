"""What Ray's dashboard shows of a run beside its name."""

from __future__ import annotations

from pathlib import Path

from rlhf_ray.config.run import JobConfig, RunConfig
from rlhf_ray.metrics.wandb_sink import wandb_url


def metadata_of(config: RunConfig) -> dict[str, str]:
    """Job, run, folder and, where it is known before W&B is asked, the run's page there."""
    metadata = {"job": config.job, "run": Path(config.run_dir).name, "run_dir": config.run_dir}
    url = wandb_url(config.wandb, Path(config.run_dir)) if isinstance(config, JobConfig) else ""
    return metadata | ({"wandb": url} if url else {})
