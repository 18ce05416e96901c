"""Running one job: what could refuse it first, then cluster, pool, folder, training."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

from actors.pool.job_nodes import check_nodes, skipped_steps_fetched
from actors.pool.pool import Pool
from launch.run.cluster import connected, runs_here
from launch.run.folder import is_finished, run_folder
from launch.run.open_pool import open_pool
from rlhf_ray.config.checks.machine import require_machine
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.data.job import JobData
from rlhf_ray.loops.setup import PreparedJob, prepare

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=OnlineConfig | SupervisedConfig)
D = TypeVar("D", bound=JobData)
Train: TypeAlias = Callable[[PreparedJob[C, D], Pool], Awaitable[Any]]


def run_job(config: C, load: Callable[[C], D], train: Train[C, D]) -> int:
    """Run it from its data to its last step; returns the exit status.

    Args:
        config: Of the job.
        load: Reads the data, before anything starts.
        train: The job on a pool.

    Raises:
        ConfigError: The job is refused: its folder is as it was.
        RunError: It failed.
    """
    if is_finished(config):
        logger.info("%s is finished: nothing is left to do", config.run_dir)
        return 0
    require_machine([config], is_here=runs_here(config.ray))
    job = prepare(config, load)
    with connected(config, config.groups):
        asyncio.run(_on_own_pool(job, train))
    logger.info("finished: %s", config.run_dir)
    return 0


async def _on_own_pool(job: PreparedJob[C, D], train: Train[C, D]) -> None:
    async with open_pool(job.config) as pool:
        await run_on(pool, job, train)


async def run_on(pool: Pool, job: PreparedJob[C, D], train: Train[C, D]) -> None:
    """Run a job on a pool; its folder is written from when its roles have their places.

    Raises:
        ConfigError: The cluster is too small, or a node is not as the job needs it.
        RunError: The job failed.
    """
    await check_nodes(job.config, pool)
    with run_folder(job.config) as folder:
        logger.info("run directory: %s", folder)
        async with skipped_steps_fetched(job.config, pool):
            await train(job, pool)
