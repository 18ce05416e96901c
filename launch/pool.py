"""The commands `rlhf-ray pool up|status|down`: actors that outlive the jobs they serve."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import ray

from actors.engine import EngineSpec
from actors.pool import Pool
from actors.record import PoolRecord, end_strangers, release_groups
from actors.standing_cluster import StandingCluster
from launch import standing
from launch.actor_start import import_libraries, start_actors
from launch.cluster import disconnect, join, num_cpus
from launch.names import check_name
from launch.online_roles import engine_ahead
from launch.pipeline import first_engine
from launch.pool_table import print_pool
from rlhf_ray.config.base import GroupConfig, RunConfig, TimeoutConfig
from rlhf_ray.config.job_file import load_job
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.pipeline import PipelineConfig
from rlhf_ray.config.stages import groups_of, resolve_stages
from rlhf_ray.errors import ConfigError, RunError

logger = logging.getLogger(__name__)

STATUS_S = 120.0


def main(arguments: Sequence[str]) -> int:
    """Run one of the three commands; returns the exit status."""
    given = parser().parse_args(arguments)
    if given.name:
        check_name("--name", given.name)
    if given.command == "up":
        return up(load_job(given.file, given.job), given.name)
    if given.command == "down":
        return down(given.name)
    return status(given.name)


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(prog="rlhf-ray pool")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start the actors of a job or pipeline, and leave them")
    start.add_argument("file", metavar="FILE", help="configuration of a job or pipeline")
    start.add_argument("--job", default="", help="what FILE configures, where it is not clear")
    start.add_argument("--name", default="default", help="of the pool (default: default)")
    told = commands.add_parser("status", help="what runs where, and which model it holds")
    told.add_argument("--name", default="", help="of one pool (default: all)")
    stop = commands.add_parser("down", help="end a pool, and its cluster if it is its own")
    stop.add_argument("--name", default="default", help="of the pool (default: default)")
    return parser


def up(config: RunConfig, name: str) -> int:
    """Start a pool that stays.

    Raises:
        ConfigError: There is one of that name, or the cluster is too small.
    """
    groups, engine = _shape(config)
    known = standing.cluster_of(name)
    if known is not None and standing.answers(known.address):
        raise ConfigError(f"pool {name} is up since {_clock(known.since_s)}: `rlhf-ray pool down`")
    if config.ray.address:
        cluster = StandingCluster(
            pool=name,
            address=config.ray.address,
            process=None,
            process_started_s=0.0,
            since_s=time.time(),
        )
    else:
        cluster = standing.start_cluster(
            name, num_cpus=num_cpus(config.ray, groups), num_gpus=config.ray.num_gpus
        )
    standing.note(cluster)
    is_anothers = False
    try:
        join(cluster.address)
        if config.ray.address:
            # `auto` means this cluster only to this process.
            standing.note(replace(cluster, address=ray.get_runtime_context().gcs_address))
        is_anothers = PoolRecord.find(name) is not None
        if not is_anothers:
            asyncio.run(_start(config, name, groups, engine))
    except BaseException:
        down(name)
        raise
    disconnect()
    if is_anothers:  # not ours to end
        standing.forget(name)
        raise ConfigError(f"the cluster has a pool {name!r}: take another --name")
    return status(name)


def _shape(config: RunConfig) -> tuple[dict[str, GroupConfig], EngineSpec | None]:
    """The groups, and what the engines start with."""
    if isinstance(config, PipelineConfig):
        # Where a run will write is of no interest yet, nor what an earlier one left there.
        anywhere = {"run_dir": os.path.abspath(config.run_dir or "runs"), "resume": "auto"}
        stages = resolve_stages(config.model_copy(update=anywhere))
        return groups_of(stages), first_engine(stages)
    groups: dict[str, GroupConfig] = config.groups  # type: ignore[attr-defined]
    return groups, engine_ahead(config) if isinstance(config, OnlineConfig) else None


async def _start(
    config: RunConfig, name: str, groups: dict[str, GroupConfig], engine: EngineSpec | None
) -> None:
    record = PoolRecord.create(name)
    record.acquire("rlhf-ray pool up")
    pool = Pool(name, config.timeouts, record=record)
    actors = await start_actors(pool, groups, engine=engine)
    await import_libraries(actors, timeout_s=config.timeouts.start_s)
    record.release()


def down(name: str) -> int:
    """End a pool: actors, placement groups, processes and the note of it."""
    cluster = standing.cluster_of(name)
    if cluster is None:
        print(f"no pool {name!r} was started from this machine")
        return 0
    if standing.answers(cluster.address):
        try:
            if not ray.is_initialized():
                join(standing.address_of(name))
            asyncio.run(_end(name))
        except RunError as error:
            if cluster.process is None:
                raise
            # Its own cluster takes the actors with it.
            logger.warning("%s", error)
        disconnect()
    standing.stop_cluster(cluster)
    standing.forget(name)
    print(f"pool {name} is down")
    return 0


async def _end(name: str) -> None:
    record = PoolRecord.find(name)
    if record is None:
        return
    holder = record.holder()
    if holder is not None and holder.job_id != ray.get_runtime_context().get_job_id():
        raise ConfigError(f"pool {name} is in use by {holder.name}: end that job first")
    pool = Pool(name, TimeoutConfig(), record=record)
    await pool.close()
    end_strangers(record)
    release_groups(record)
    record.end()


def status(name: str) -> int:
    """Tell of one pool or of all; also where there is none or its cluster is gone."""
    clusters = [cluster for cluster in standing.noted() if name in ("", cluster.pool)]
    if not clusters:
        print(f"no pool {name!r}" if name else "no pool is up; `rlhf-ray pool up FILE` starts one")
    if len(clusters) > 1:  # a process connects with one cluster's token only
        for cluster in clusters:
            command = ["-m", "launch.cli", "pool", "status", "--name", cluster.pool]
            subprocess.run([sys.executable, *command], timeout=STATUS_S, check=False)
        return 0
    for cluster in clusters:
        if not standing.answers(cluster.address):
            print(
                f"pool {cluster.pool}: its cluster at {cluster.address}, started "
                f"{_clock(cluster.since_s)}, does not answer; "
                f"`rlhf-ray pool down --name {cluster.pool}` clears it away"
            )
            continue
        join(standing.address_of(cluster.pool))
        print_pool(cluster.pool, PoolRecord.find(cluster.pool))
        disconnect()
    return 0


def _clock(since_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(since_s))
