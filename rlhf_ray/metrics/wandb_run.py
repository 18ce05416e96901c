"""Which W&B run a run's folder belongs to, and where it is seen."""

from __future__ import annotations

import functools
import os
import secrets
from pathlib import Path

from rlhf_ray.config.base import WandbConfig


def wandb_run_id(run_dir: Path) -> str:
    """The folder's, or one that `keep_wandb_run_id` will leave there once the run has begun."""
    path = run_dir / "wandb_run_id"
    return path.read_text(encoding="utf-8").strip() if path.exists() else _new_id(run_dir)


def keep_wandb_run_id(run_dir: Path) -> str:
    """Leave the id in the run directory, so that a resumed job finds it."""
    run_id = wandb_run_id(run_dir)
    (run_dir / "wandb_run_id").write_text(run_id, encoding="utf-8")
    return run_id


@functools.cache
def _new_id(run_dir: Path) -> str:
    return secrets.token_hex(4)


def wandb_url(config: WandbConfig, run_dir: Path) -> str:
    """The run's page; empty where there is none, or where only W&B knows whose it is."""
    entity = config.entity or os.environ.get("WANDB_ENTITY", "")
    if config.mode != "online" or not entity:
        return ""
    site = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    site = site.replace("://api.wandb.ai", "://wandb.ai")
    return f"{site}/{entity}/{config.project}/runs/{wandb_run_id(run_dir)}"
