"""Running a job of any kind, or a pipeline: jobs one after the other on one pool.

First comes what could refuse it, then cluster, pool, folder, training. All actors of a pipeline
start side by side before the first stage, so that later stages find them running with their
libraries imported, and the model that another stage left in their memory.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from actors.jobs.submission import is_submitted
from actors.pool.job_nodes import check_nodes, skipped_steps_fetched
from actors.pool.pool import Pool
from actors.pool.record import PoolRecord, end_orphans
from actors.pool.watch import watched
from actors.roles.job_pool import JobPool
from actors.roles.lasting import repeated
from actors.roles.start import role_specs, start_all
from launch.run.cluster import connected, runs_here
from launch.run.folder import check_folder, is_finished, run_folder
from launch.run.guard import beating
from launch.run.signals import asked_first
from rlhf_ray.config.checks.machine import require_machine
from rlhf_ray.config.checks.unused import warn_of_unused
from rlhf_ray.config.jobs import AnyJob, PipelineConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.tools.stages import Stage, groups_of, stages_of
from rlhf_ray.errors import ConfigError, Disagreement
from rlhf_ray.jobs.job import PreparedJob
from rlhf_ray.jobs.stages import check_same, has_steps, results_needed, stages_left
from rlhf_ray.jobs.status import state_of
from rlhf_ray.jobs.table import JOBS
from rlhf_ray.loops.stopping import Stop

logger = logging.getLogger(__name__)

# Seconds in which actors end and a folder is marked.
END_S = 2.0

Prepared: TypeAlias = PreparedJob[Any, Any]


def run(config: AnyJob | PipelineConfig) -> int:
    """Run a job from its data to its last step, or what is left of a pipeline's stages.

    Returns:
        The exit status.

    Raises:
        ConfigError: It is refused, or one of its stages is: all folders are as they were.
        RunError: It failed.
    """
    if isinstance(config, PipelineConfig):
        return _run_pipeline(config)
    if is_finished(config):
        logger.info("%s is finished: nothing is left to do", config.run_dir)
        return 0
    require_machine([config], is_here=runs_here(config.ray))
    prepared = prepare(config)
    with connected(config, config.groups):
        asyncio.run(_on_own_pool(prepared))
    export = Path(config.run_dir) / "export"
    logger.info("finished: %s", f"the model is in {export}" if export.is_dir() else config.run_dir)
    return 0


def prepare(config: AnyJob) -> Prepared:
    """A job with its data, ready to run on a pool.

    Raises:
        ConfigError: Its data or models refuse it.
    """
    return JOBS[config.job].prepare(config)


async def _on_own_pool(prepared: Prepared) -> None:
    async with open_pool(prepared.config) as pool:
        await run_on(pool, prepared)


@asynccontextmanager
async def open_pool(config: RunConfig) -> AsyncIterator[Pool]:
    """The pool that a run works on: one of its own, ended with it, or a standing one.

    Raises:
        ConfigError: There is no standing pool of the name, or another job has it.
    """
    if not config.ray.pool:
        pool = Pool(Path(config.run_dir).name, config.timeouts, failures=config.failures)
        try:
            async with watched(pool):
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
        pool = Pool(record.pool, config.timeouts, failures=config.failures, record=record)
        await pool.heal()
        end_orphans(record)  # also what was to come in place of what is ended now
        async with watched(pool):
            yield pool
    finally:
        record.release()


async def run_on(pool: Pool, prepared: Prepared) -> None:
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
            stop = Stop(grace_s=grace_s(config))
            async with beating(folder):
                with asked_first(stop.ask):
                    await _train(prepared, pool, stop)


async def _train(prepared: Prepared, pool: Pool, stop: Stop) -> None:
    try:
        await prepared.run(JobPool(pool, prepared.config), stop)
    except Disagreement as error:
        # Nobody knows which of their processes is wrong. It would be so in the pool's next job too.
        for role in error.roles:
            await pool.end(role)
        raise


def grace_s(config: RunConfig) -> float:
    """How long a stopped run may go on: Ray kills what is left of a submitted one."""
    if not is_submitted():
        return config.timeouts.stop_s
    allowed_s = float(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", 3.0))
    return max(0.0, min(config.timeouts.stop_s, allowed_s - END_S))


def _run_pipeline(config: PipelineConfig) -> int:
    stages = stages_of(config)
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
    begun = {stage.name: prepare(stage.config) for stage in left if has_steps(stage)}
    for stage in stages:
        if stage not in left:
            logger.info("stage %s is finished: skipped", stage.name)
    seconds: dict[str, float] = {}
    if left:
        with connected(config, groups_of(left)):
            asyncio.run(_run_left(config, left, begun, seconds))
    elif state_of(config.run_dir) != "finished":  # stopped behind its last stage
        with run_folder(config):
            pass
    _print_table(stages, seconds)
    return 0


async def _run_left(
    config: PipelineConfig,
    stages: Sequence[Stage],
    begun: Mapping[str, Prepared],
    seconds: dict[str, float],
) -> None:
    """Run stages, and note the seconds of each."""
    async with open_pool(config) as pool:
        groups = groups_of(stages)
        pool.place(groups)
        for stage in stages:
            await check_nodes(stage.rooted, pool)
        with run_folder(config):
            started_s = time.monotonic()
            await start_all(pool, groups, role_specs(groups, *(stage.rooted for stage in stages)))
            logger.info("all actors are ready after %.0f s", time.monotonic() - started_s)
            for index, stage in enumerate(stages):
                needed = results_needed(stages, stages[index:])
                await repeated(pool, partial(pool.want, needed))
                started_s = time.monotonic()
                logger.info("stage %s: %s in %s", stage.name, stage.job, stage.config.run_dir)
                await run_on(pool, begun.get(stage.name) or prepare(stage.config))
                seconds[stage.name] = time.monotonic() - started_s


def _print_table(stages: Sequence[Stage], seconds: Mapping[str, float]) -> None:
    """What each stage brought: the metric that tells most, before and after."""
    import rich
    from rich.table import Table

    table = Table(title="what the stages brought")
    for column in ("stage", "job", "metric", "start", "end", "seconds"):
        is_number = column in ("start", "end", "seconds")
        table.add_column(column, justify="right" if is_number else "left")
    for stage in stages:
        took = seconds.get(stage.name)
        table.add_row(
            stage.name,
            stage.job,
            *_first_and_last(stage),
            "earlier" if took is None else f"{took:.0f}",
        )
    rich.print(table)


def _first_and_last(stage: Stage) -> tuple[str, str, str]:
    """Of the first headline that a run logged: name, first and last value; else empty."""
    path = Path(stage.config.run_dir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for name in JOBS[stage.job].headline:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            return name, f"{values[0]:.4g}", f"{values[-1]:.4g}"
    return "", "", ""
