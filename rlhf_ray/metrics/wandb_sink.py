"""Weights & Biases: whose run a folder is; configuration without secrets, metrics and tables."""

from __future__ import annotations

import functools
import logging
import os
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rlhf_ray.config.run import JobConfig, WandbConfig
from rlhf_ray.config.tools.secrets import without_secrets
from rlhf_ray.errors import RunError
from rlhf_ray.metrics.log import Record, Table

logger = logging.getLogger(__name__)


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


class WandbSink:
    """One W&B run below `run_dir`; a resumed job goes on with the same one.

    Offline, a resumed job writes another folder under the same id; `wandb sync` uploads both in the
    order of their start.
    """

    def __init__(self, config: JobConfig, *, job: str, run_dir: Path) -> None:
        """Start the run.

        Raises:
            RunError: W&B refuses, for example without a key.
        """
        import wandb

        self._environment = ExitStack()
        self._environment.enter_context(_folders_below(run_dir / "wandb"))
        try:
            with _no_arguments():
                self._run = wandb.init(
                    mode=config.wandb.mode,
                    project=config.wandb.project,
                    name=config.wandb.name or run_dir.name,
                    entity=config.wandb.entity or None,
                    tags=[job, *config.wandb.tags],
                    id=keep_wandb_run_id(run_dir),
                    resume="allow" if config.wandb.mode == "online" else None,
                    dir=str(run_dir),
                    config=_queryable(without_secrets(config.model_dump(mode="json"))),
                    settings=wandb.Settings(
                        console="off", silent=True, init_timeout=config.timeouts.place_s
                    ),
                )
        except wandb.Error as error:
            self._environment.close()
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
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:
            # Whoever stops a job may end W&B's process before ours, and that is no end of a run.
            logger.warning("W&B has not got the end of the run (%s)", type(error).__name__)
        finally:
            self._environment.close()


@contextmanager
def _no_arguments() -> Iterator[None]:
    """W&B keeps the command line, where a login may stand; the configuration says the same."""
    kept, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = kept


@contextmanager
def _folders_below(folder: Path) -> Iterator[None]:
    """What W&B keeps in the user's home (its own logs, tables on their way) is the run's.

    A place that the user has chosen by these variables stays.
    """
    folders = {"WANDB_CACHE_DIR": folder / "cache", "WANDB_DATA_DIR": folder / "data"}
    added = {name: str(path) for name, path in folders.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _queryable(values: Any) -> Any:
    """Lists of sections by their index: W&B finds keys in mappings only."""
    if isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        values = {str(index): value for index, value in enumerate(values)}
    if isinstance(values, Mapping):
        return {key: _queryable(value) for key, value in values.items()}
    return values
