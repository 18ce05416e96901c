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
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from actors.engines.spec import EngineSpec
from actors.pool.job_nodes import check_nodes
from actors.pool.pool import Pool
from launch import cli
from launch.run.cluster import connected, runs_here
from launch.run.folder import check_folder, run_folder, state_of
from launch.run.job import run_on
from launch.run.open_pool import open_pool
from launch.tables.stages import print_table
from launch.training.actor_start import import_libraries, start_actors
from launch.training.online_roles import engine_ahead
from rlhf_ray.config.checks.machine import require_machine
from rlhf_ray.config.checks.unused import tell_unused
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.tools.stages import Stage, groups_of, resolve_stages
from rlhf_ray.config.tools.yaml_file import read_yaml
from rlhf_ray.errors import ConfigError
from rlhf_ray.loops.setup import PreparedJob, changes_since, prepare

logger = logging.getLogger(__name__)

AnyJob: TypeAlias = PreparedJob[Any, Any]


def run(config: PipelineConfig) -> int:
    """Run what is left of the stages; returns the exit status.

    Raises:
        ConfigError: The pipeline or one of its stages is refused: all folders are as they were.
        RunError: A stage failed.
    """
    stages = resolve_stages(config)
    require_machine([stage.config for stage in stages], is_here=runs_here(config.ray))
    for stage in stages:
        tell_unused(stage.config, f"stage {stage.name}")
    left = _left(stages)
    _check_folders(stages, left)
    # A stage that was begun is prepared ahead of those before it, as it may be refused.
    begun = {stage.name: _prepare(stage) for stage in left if _has_steps(stage)}
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


def _check_folders(stages: Sequence[Stage], left: Sequence[Stage]) -> None:
    """Whether what is left may go on, and what is finished is what is asked for.

    Raises:
        ConfigError: It may not, or it finished with other settings.
    """
    for stage in stages:
        if stage in left:
            check_folder(stage.config)
            continue
        before = read_yaml(Path(stage.config.run_dir) / "config.yaml").values
        if changed := changes_since(stage.config, before):
            raise ConfigError(
                f"stage {stage.name} is finished with other settings: {'; '.join(changed)}; set "
                f"them back, or delete {stage.config.run_dir}"
            )


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


async def _run(
    config: PipelineConfig,
    stages: Sequence[Stage],
    begun: Mapping[str, AnyJob],
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
    begun: Mapping[str, AnyJob],
    seconds: dict[str, float],
    pool: Pool,
) -> None:
    started_s = time.monotonic()
    actors = await start_actors(
        pool,
        groups_of(stages),
        [stage.rooted for stage in stages],
        engine=first_engine(stages),
    )
    await import_libraries(actors, timeout_s=config.timeouts.start_s)
    logger.info("all actors are ready after %.0f s", time.monotonic() - started_s)
    for index, stage in enumerate(stages):
        sources = {name for later in stages[index:] for name in later.sources}
        await pool.want(other.result for other in stages if other.name in sources)
        started_s = time.monotonic()
        logger.info("stage %s: %s in %s", stage.name, stage.job, stage.config.run_dir)
        await run_stage(stage, pool, begun.get(stage.name))
        seconds[stage.name] = time.monotonic() - started_s


def first_engine(stages: Sequence[Stage]) -> EngineSpec | None:
    """What the engines start with, if any stage has them; its weights come with a publication."""
    online = [stage.rooted for stage in stages if isinstance(stage.rooted, OnlineConfig)]
    return engine_ahead(online[0]) if online else None


async def run_stage(stage: Stage, pool: Pool, begun: AnyJob | None = None) -> None:
    """One job, from its data to its result; where it was begun, they are there already."""
    await run_on(pool, begun or _prepare(stage), _trainer(stage.job))


def _prepare(stage: Stage) -> AnyJob:
    data = importlib.import_module("rlhf_ray.data.job")
    kind = "online" if isinstance(stage.config, OnlineConfig) else stage.job
    return prepare(stage.config, getattr(data, f"load_{kind}_data"))


def _trainer(job: str) -> Callable[[AnyJob, Pool], Awaitable[Any]]:
    """What runs a job on a pool."""
    module = "launch.training.online" if job in ("ppo", "grpo") else f"launch.{job}"
    train: Callable[[AnyJob, Pool], Awaitable[Any]] = importlib.import_module(module).train
    return train


if __name__ == "__main__":
    sys.exit(cli.main(["pipeline", *sys.argv[1:]]))
