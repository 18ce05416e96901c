"""The command `rlhf-ray pipeline`: jobs one after the other on one pool.

All actors start side by side before the first stage, so that later stages find them running with
their libraries imported, and the model that another stage left in their memory.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from actors.pool.job_nodes import check_nodes
from actors.pool.pool import Pool
from actors.roles.start import import_libraries, role_specs, start_actors
from launch import cli
from launch.job import run_on
from launch.run.cluster import connected, runs_here
from launch.run.folder import check_folder, run_folder
from launch.run.open_pool import open_pool
from launch.tables.stages import print_table
from rlhf_ray.config.checks.machine import require_machine
from rlhf_ray.config.checks.unused import warn_of_unused
from rlhf_ray.config.jobs import PipelineConfig
from rlhf_ray.config.tools.stages import Stage, groups_of, resolve_stages
from rlhf_ray.jobs.job import PreparedJob
from rlhf_ray.jobs.stages import check_same, has_steps, results_needed, stages_left
from rlhf_ray.jobs.status import state_of
from rlhf_ray.jobs.table import JOBS

logger = logging.getLogger(__name__)

Prepared: TypeAlias = PreparedJob[Any, Any]


def run(config: PipelineConfig) -> int:
    """Run what is left of the stages; returns the exit status.

    Raises:
        ConfigError: The pipeline or one of its stages is refused: all folders are as they were.
        RunError: A stage failed.
    """
    stages = resolve_stages(config)
    require_machine([stage.config for stage in stages], is_here=runs_here(config.ray))
    for stage in stages:
        warn_of_unused(stage.config, f"stage {stage.name}")
    left = stages_left(stages)
    for stage in stages:
        if stage in left:
            check_folder(stage.config)
        else:
            check_same(stage)
    # A stage that was begun is prepared ahead of those before it, as it may be refused.
    begun = {stage.name: _prepare(stage) for stage in left if has_steps(stage)}
    for stage in stages:
        if stage not in left:
            logger.info("stage %s is finished: skipped", stage.name)
    seconds: dict[str, float] = {}
    if left:
        with connected(config, groups_of(left)):
            asyncio.run(_run(config, left, begun, seconds))
    elif state_of(config.run_dir) != "finished":  # stopped behind its last stage
        with run_folder(config):
            pass
    print_table(stages, seconds)
    return 0


async def _run(
    config: PipelineConfig,
    stages: Sequence[Stage],
    begun: Mapping[str, Prepared],
    seconds: dict[str, float],
) -> None:
    async with open_pool(config) as pool:
        pool.place(groups_of(stages))
        for stage in stages:
            await check_nodes(stage.rooted, pool)
        with run_folder(config):
            await _run_stages(config, stages, begun, seconds, pool)


async def _run_stages(
    config: PipelineConfig,
    stages: Sequence[Stage],
    begun: Mapping[str, Prepared],
    seconds: dict[str, float],
    pool: Pool,
) -> None:
    started_s = time.monotonic()
    await start_all(stages, pool, timeout_s=config.timeouts.start_s)
    logger.info("all actors are ready after %.0f s", time.monotonic() - started_s)
    for index, stage in enumerate(stages):
        await pool.want(results_needed(stages, stages[index:]))
        started_s = time.monotonic()
        logger.info("stage %s: %s in %s", stage.name, stage.job, stage.config.run_dir)
        await run_stage(stage, pool, begun.get(stage.name))
        seconds[stage.name] = time.monotonic() - started_s


async def start_all(stages: Sequence[Stage], pool: Pool, *, timeout_s: float) -> None:
    """Start all actors of some stages side by side, with their libraries imported."""
    groups = groups_of(stages)
    specs = role_specs(groups, *(stage.rooted for stage in stages))
    actors = await start_actors(pool, groups, specs)
    await import_libraries(actors, timeout_s=timeout_s)


async def run_stage(stage: Stage, pool: Pool, begun: Prepared | None = None) -> None:
    """One job, from its data to its result; where it was begun, they are there already."""
    await run_on(pool, begun or _prepare(stage))


def _prepare(stage: Stage) -> Prepared:
    return JOBS[stage.job].prepare(stage.config)


if __name__ == "__main__":
    sys.exit(cli.main(["pipeline", *sys.argv[1:]]))
