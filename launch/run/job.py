"""Running one job on a pool of its own: folder, data, cluster, pool, training."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from actors.pool.job_nodes import on_nodes
from actors.pool.pool import Pool
from launch.run.cluster import connected
from launch.run.folder import is_finished, run_folder
from launch.run.open_pool import open_pool
from rlhf_ray.config.base import JobConfig

logger = logging.getLogger(__name__)

AnyJob = TypeVar("AnyJob", bound=JobConfig)
Data = TypeVar("Data")


def run_job(
    config: AnyJob,
    load: Callable[[AnyJob], Data],
    train: Callable[[AnyJob, Data, Pool], Awaitable[None]],
) -> int:
    """Run it from its data to its last step; returns the exit status.

    Args:
        config: Of the job.
        load: Reads the data, before anything starts.
        train: The job on a pool.
    """
    if is_finished(config):
        logger.info("%s is finished: nothing is left to do", config.run_dir)
        return 0
    with run_folder(config) as folder:
        logger.info("run directory: %s", folder)
        data = load(config)
        with connected(config, config.groups):
            asyncio.run(_run(config, data, train))
    logger.info("finished: %s", folder)
    return 0


async def _run(
    config: AnyJob, data: Data, train: Callable[[AnyJob, Data, Pool], Awaitable[None]]
) -> None:
    async with open_pool(config) as pool, on_nodes(config, pool):
        await train(config, data, pool)
