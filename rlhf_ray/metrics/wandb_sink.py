"""Weights & Biases: the run, its configuration without secrets, metrics and tables."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.config.base import JobConfig
from rlhf_ray.errors import RunError
from rlhf_ray.metrics.log import Record, Table

_SECRET_KEY = re.compile(r"(^|[_-])(token|api_?key|key|secret|password|credentials?)$", re.I)
_LOGIN_IN_URL = re.compile(r"://[^/@\s]+@")


class WandbSink:
    """One W&B run below `run_dir`; a resumed job goes on with the same one."""

    def __init__(self, config: JobConfig, *, job: str, run_dir: Path) -> None:
        """Start the run.

        Raises:
            RunError: W&B refuses, for example without a key.
        """
        import wandb

        try:
            self._run = wandb.init(
                mode=config.wandb.mode,
                project=config.wandb.project,
                name=config.wandb.name or run_dir.name,
                entity=config.wandb.entity or None,
                tags=[job, *config.wandb.tags],
                id=_run_id(run_dir),
                resume="allow" if config.wandb.mode == "online" else None,
                dir=str(run_dir),
                config=without_secrets(config.model_dump(mode="json")),
                settings=wandb.Settings(
                    console="off", silent=True, init_timeout=config.timeouts.place_s
                ),
            )
        except wandb.Error as error:
            raise RunError(
                f"W&B did not start: {error}. Set WANDB_API_KEY, or wandb.mode to offline"
            ) from error
        self._wandb = wandb
        self._run.define_metric("*", step_metric="step")

    def log(self, record: Record) -> None:
        """Log one step; W&B draws every metric over `step`."""
        self._run.log({"step": record.step, "time_s": record.time_s, **record.metrics})

    def table(self, table: Table) -> None:
        """Log a table as `samples/<name>`."""
        rows: list[Iterable[Any]] = [list(row) for row in table.rows]
        content = self._wandb.Table(columns=list(table.columns), data=rows)
        self._run.log({"step": table.step, f"samples/{table.name}": content})

    def close(self, *, failed: bool) -> None:
        """Finish the run, with W&B's mark for a failure."""
        self._run.finish(exit_code=int(failed))


def without_secrets(values: Any) -> Any:
    """A copy without logins in URLs and without the values of keys named like a secret."""
    if isinstance(values, Mapping):
        return {
            key: "***"
            if isinstance(value, str) and value and _SECRET_KEY.search(str(key))
            else without_secrets(value)
            for key, value in values.items()
        }
    if isinstance(values, list):
        return [without_secrets(value) for value in values]
    return _LOGIN_IN_URL.sub("://***@", values) if isinstance(values, str) else values


def _run_id(run_dir: Path) -> str:
    """Kept in the run directory, so that a resumed job finds it."""
    path = run_dir / "wandb_run_id"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
