"""Running one job of any kind: what could refuse it first, then cluster, pool, folder, training."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from actors.pool.job_nodes import check_nodes, skipped_steps_fetched
from actors.pool.pool import Pool
from actors.pool.record import PoolRecord, end_orphans
from actors.roles.job_pool import JobPool
from launch.run.cluster import connected, runs_here
from launch.run.folder import is_finished, run_folder
from rlhf_ray.config.checks.machine import require_machine
from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.run import RunConfig
from rlhf_ray.errors import ConfigError
from rlhf_ray.jobs.job import PreparedJob
from rlhf_ray.jobs.table import JOBS

logger = logging.getLogger(__name__)


def run(config: AnyJob) -> int:
    """Run a job from its data to its last step; returns the exit status.

    Raises:
        ConfigError: The job is refused: its folder is as it was.
        RunError: It failed.
    """
    if is_finished(config):
        logger.info("%s is finished: nothing is left to do", config.run_dir)
        return 0
    require_machine([config], is_here=runs_here(config.ray))
    prepared = JOBS[config.job].prepare(config)
    with connected(config, config.groups):
        asyncio.run(_on_own_pool(prepared))
    logger.info("finished: %s", config.run_dir)
    return 0


async def _on_own_pool(prepared: PreparedJob[Any, Any]) -> None:
    async with open_pool(prepared.config) as pool:
        await run_on(pool, prepared)


@asynccontextmanager
async def open_pool(config: RunConfig) -> AsyncIterator[Pool]:
    """The pool that a run works on: one of its own, ended with it, or a standing one.

    Raises:
        ConfigError: There is no standing pool of the name, or another job has it.
    """
    if not config.ray.pool:
        pool = Pool(Path(config.run_dir).name, config.timeouts)
        try:
            yield pool
        finally:
            await pool.close()
        return
    record = PoolRecord.find(config.ray.pool)
    if record is None:
        raise ConfigError(
            f"ray.pool is {config.ray.pool!r}, but the cluster has no such pool; "
            "`rlhf-ray pool up` starts one"
        )
    record.acquire(config.run_dir)
    try:
        pool = Pool(record.pool, config.timeouts, record=record)
        end_orphans(record)
        await pool.heal()
        yield pool
    finally:
        record.release()


async def run_on(pool: Pool, prepared: PreparedJob[Any, Any]) -> None:
    """Run a job on a pool; its folder is written from when its roles have their places.

    Raises:
        ConfigError: The cluster is too small, or a node is not as the job needs it.
        RunError: The job failed.
    """
    config = prepared.config
    await check_nodes(config, pool)
    with run_folder(config) as folder:
        logger.info("run directory: %s", folder)
        async with skipped_steps_fetched(config, pool):
            await prepared.run(JobPool(pool, config))
