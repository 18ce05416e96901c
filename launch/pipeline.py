"""The command `rlhf-ray pipeline`: jobs one after the other on one pool.

All actors start side by side before the first stage, so that later stages find them running with
their libraries imported, and the model that another stage left in their memory.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from actors.engines.spec import EngineSpec
from actors.pool.job_nodes import check_nodes, on_nodes
from actors.pool.pool import Pool
from launch import cli
from launch.run.cluster import connected
from launch.run.folder import run_folder, state_of
from launch.run.open_pool import open_pool
from launch.tables.stages import print_table
from launch.training.actor_start import import_libraries, start_actors
from launch.training.online_roles import engine_ahead
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.stages import Stage, groups_of, resolve_stages
from rlhf_ray.errors import ConfigError

logger = logging.getLogger(__name__)


def run(config: PipelineConfig) -> int:
    """Run what is left of the stages; returns the exit status."""
    stages = resolve_stages(config)
    with run_folder(config):
        seconds: dict[str, float] = {}
        left = _left(stages)
        for stage in stages:
            if stage not in left:
                logger.info("stage %s is finished: skipped", stage.name)
        if left:
            with connected(config, groups_of(left)):
                asyncio.run(_run(config, left, seconds))
    print_table(stages, seconds)
    return 0


def _left(stages: Sequence[Stage]) -> list[Stage]:
    """The stages to run: those that did not finish, and those whose result is needed and gone.

    Raises:
        ConfigError: A finished stage was made from one that would be made anew.
    """
    anew = {stage.name for stage in stages if not _is_finished(stage) and not _has_steps(stage)}
    stale = [stage for stage in stages if _is_finished(stage) and stage.sources & anew]
    if stale:
        folders = ", ".join(stage.config.run_dir for stage in stale)
        raise ConfigError(f"{folders}: made from a stage that is gone; delete these as well")
    left: list[Stage] = []
    for stage in reversed(stages):
        needed = any(stage.name in later.sources for later in left)
        if not _is_finished(stage) or (needed and not _has_weights(stage)):
            left.insert(0, stage)
    return left


def _is_finished(stage: Stage) -> bool:
    return stage.config.resume != "never" and state_of(stage.config.run_dir) == "finished"


def _has_steps(stage: Stage) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any(Path(stage.config.run_dir, "checkpoints").glob("step_*"))


def _has_weights(stage: Stage) -> bool:
    return any(Path(stage.result).glob("*.safetensors"))


async def _run(config: PipelineConfig, stages: Sequence[Stage], seconds: dict[str, float]) -> None:
    async with open_pool(config) as pool:
        started_s = time.monotonic()
        pool.place(groups_of(stages))
        for stage in stages:
            await check_nodes(stage.rooted, pool)
        actors = await start_actors(pool, groups_of(stages), engine=first_engine(stages))
        await import_libraries(actors, timeout_s=config.timeouts.start_s)
        logger.info("all actors are ready after %.0f s", time.monotonic() - started_s)
        for index, stage in enumerate(stages):
            sources = {name for later in stages[index:] for name in later.sources}
            await pool.want(other.result for other in stages if other.name in sources)
            started_s = time.monotonic()
            logger.info("stage %s: %s in %s", stage.name, stage.job, stage.config.run_dir)
            await run_stage(stage, pool)
            seconds[stage.name] = time.monotonic() - started_s


def first_engine(stages: Sequence[Stage]) -> EngineSpec | None:
    """What the engines start with, if any stage has them; its weights come with a publication."""
    online = [stage.rooted for stage in stages if isinstance(stage.rooted, OnlineConfig)]
    return engine_ahead(online[0]) if online else None


async def run_stage(stage: Stage, pool: Pool) -> None:
    """One job, from its data to its result."""
    load, train = _runner(stage.job)
    with run_folder(stage.config):
        async with on_nodes(stage.config, pool):
            await train(stage.config, load(stage.config), pool)


def _runner(job: str) -> tuple[Callable[[Any], Any], Callable[[Any, Any, Pool], Awaitable[None]]]:
    """What reads a job's data, and what runs it on a pool."""
    data = importlib.import_module("rlhf_ray.data.job")
    if job in ("ppo", "grpo", "sample"):
        from launch import sample
        from launch.training import online

        train = sample.train if job == "sample" else partial(online.train, job=job)
        return data.load_online_data, train
    return getattr(data, f"load_{job}_data"), importlib.import_module(f"launch.{job}").train


if __name__ == "__main__":
    sys.exit(cli.main(["pipeline", *sys.argv[1:]]))
