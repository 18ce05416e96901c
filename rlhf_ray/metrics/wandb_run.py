"""Which W&B run a run's folder belongs to, and where it is seen."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from rlhf_ray.config.base import WandbConfig


def wandb_run_id(run_dir: Path) -> str:
    """Kept in the run directory, so that a resumed job finds it."""
    path = run_dir / "wandb_run_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def wandb_url(config: WandbConfig, run_dir: Path) -> str:
    """The run's page; empty where there is none, or where only W&B knows whose it is."""
    entity = config.entity or os.environ.get("WANDB_ENTITY", "")
    if config.mode != "online" or not entity:
        return ""
    site = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").rstrip("/")
    site = site.replace("://api.wandb.ai", "://wandb.ai")
    return f"{site}/{entity}/{config.project}/runs/{wandb_run_id(run_dir)}"
