"""The commands `rlhf-ray pool up|status|down`: actors that outlive the jobs they serve."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import ray
from ray.exceptions import RayError

from actors.pool.pool import Pool
from actors.pool.record import PoolInUseError, PoolRecord, end_orphans, release_groups
from actors.pool.standing_cluster import Process, StandingCluster
from actors.roles.start import role_specs, start_all
from launch.run import standing
from launch.run.cluster import join, num_cpus, runs_here
from launch.run.names import check_name
from launch.run.signals import uninterrupted
from launch.tables.format import screen
from rlhf_ray.config.checks.machine import require_machine
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.tools.load import load_job
from rlhf_ray.config.tools.stages import groups_of, stages_of
from rlhf_ray.errors import EXIT_RUN, ConfigError, RlhfRayError, RunError

logger = logging.getLogger(__name__)

STATUS_S = 120.0
COLUMNS = ("role", "rank", "GPUs", "node", "pid", "state", "model held", "since")


def main(arguments: Sequence[str]) -> int:
    """Run one of the three commands; returns the exit status."""
    given = parser().parse_args(arguments)
    if given.name or given.command != "status":
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
    start.add_argument("file", metavar="FILE", help="of a job or pipeline, or a ready one by name")
    start.add_argument("--job", default="", help="what FILE configures, where it is not clear")
    start.add_argument("--name", default="default", help="of the pool (default: default)")
    shown = commands.add_parser("status", help="what runs where, and which model it holds")
    shown.add_argument("--name", default="", help="of one pool (default: all)")
    stop = commands.add_parser("down", help="end a pool, and its cluster if it is its own")
    stop.add_argument("--name", default="default", help="of the pool (default: default)")
    return parser


def up(config: RunConfig, name: str) -> int:
    """Start a pool that stays, or leave nothing.

    Raises:
        ConfigError: There is one of that name, or the cluster is too small.
        RunError: Ray or an actor did not start.
    """
    # Where a run will write is of no interest yet, nor what is there already.
    anywhere = {"run_dir": os.path.abspath(config.run_dir or "runs"), "resume": "auto"}
    stages = stages_of(config.model_copy(update=anywhere))
    require_machine([stage.config for stage in stages], is_here=runs_here(config.ray))
    groups = groups_of(stages)
    specs = role_specs(groups, *(stage.rooted for stage in stages))
    try:
        cluster = standing.claim(name)
        if not config.ray.address:
            cluster = standing.start_cluster(
                cluster, num_cpus=num_cpus(config.ray, groups), num_gpus=config.ray.num_gpus
            )
        join(config.ray.address or cluster.address)
        # `auto` means this cluster only to this process.
        cluster = replace(cluster, address=ray.get_runtime_context().gcs_address)
        standing.register(cluster)
        record = PoolRecord.create(name, "rlhf-ray pool up")
        pool = Pool(name, config.timeouts, failures=config.failures, record=record)
        asyncio.run(start_all(pool, groups, specs))
        with uninterrupted():  # from here on it is up
            standing.register(replace(cluster, starter=None))
            record.release()
            print_pool(name, record)
            ray.shutdown()
    except BaseException:
        with uninterrupted():
            _undo(name)
        raise
    return 0


def _undo(name: str) -> None:
    """End what this process has started under a name, and nothing that is another's."""
    cluster = standing.cluster_of(name)
    if cluster is None or cluster.starter != Process.own():
        return
    # Ray cannot connect anew after a connection that was broken off; nor was anything started yet.
    if ray.is_initialized():
        try:
            _end_actors(cluster, only_ours=True)
        except RunError as error:
            logger.warning("%s", error)
            return  # registered still, for `down`
    ray.shutdown()
    standing.stop_cluster(cluster)
    standing.forget(cluster)


def down(name: str) -> int:
    """End a pool: actors, placement groups, processes and its entry in the registry.

    Raises:
        ConfigError: A job uses it, or it is being started.
        RunError: It is on a cluster that does not answer.
    """
    cluster = standing.cluster_of(name)
    if cluster is None:
        print(f"no pool {name!r} was started from this machine")
        return 0
    if cluster.starter is not None and cluster.is_starting:
        raise ConfigError(f"process {cluster.starter.pid} starts pool {name}: end that first")
    # Of its own cluster that is gone, the actors are gone as well.
    if cluster.address and (cluster.head is None or standing.answers(cluster.address)):
        standing.use_token(name)
        _end_actors(cluster)
        ray.shutdown()
    standing.stop_cluster(cluster)
    standing.forget(cluster)
    print(f"pool {name} is down")
    return 0


def _end_actors(cluster: StandingCluster, *, only_ours: bool = False) -> None:
    """End a pool's actors, on the cluster that this process joins where it has not yet.

    Raises:
        PoolInUseError: A job has the pool.
        RunError: The cluster does not answer, and does not end with the pool.
    """
    try:
        if not ray.is_initialized():
            join(cluster.address)
        record = PoolRecord.find(cluster.pool)
        if record is not None and (record.is_ours or not only_ours):
            asyncio.run(_end(record))
    except PoolInUseError:
        raise
    except (RlhfRayError, RayError) as error:
        if cluster.head is None:
            raise RunError(
                f"{error}\nActors of pool {cluster.pool} may still hold GPUs at {cluster.address}; "
                f"if that cluster is gone for good, delete {standing.entry_file(cluster.pool)}"
            ) from error
        # Its own cluster takes the actors with it.
        logger.warning("%s", error)


async def _end(record: PoolRecord) -> None:
    holder = record.holder()
    if holder is not None and not record.is_ours:
        raise PoolInUseError(f"pool {record.pool} is in use by {holder.name}: end that job first")
    pool = Pool(record.pool, TimeoutConfig(), record=record)
    await pool.close()
    end_orphans(record)
    release_groups(record)
    record.end()


def status(name: str) -> int:
    """Tell of one pool or of all; also where there is none or its cluster is gone."""
    clusters = [cluster for cluster in standing.entries() if name in ("", cluster.pool)]
    if not clusters:
        print(f"no pool {name!r}" if name else "no pool is up; `rlhf-ray pool up FILE` starts one")
    if len(clusters) > 1:  # a process connects with one cluster's token only
        return max(_status_elsewhere(cluster.pool) for cluster in clusters)
    for cluster in clusters:
        if trouble := _trouble(cluster):
            print(f"pool {cluster.pool}: {trouble}")
            continue
        standing.use_token(cluster.pool)
        join(cluster.address)
        print_pool(cluster.pool, PoolRecord.find(cluster.pool))
        ray.shutdown()
    return 0


def _status_elsewhere(pool: str) -> int:
    """Tell of one pool in a process of its own; its exit status."""
    command = ["-m", "launch.cli", "pool", "status", "--name", pool]
    try:
        done = subprocess.run([sys.executable, *command], timeout=STATUS_S, check=False)
    except subprocess.TimeoutExpired:
        print(f"pool {pool}: no answer within {STATUS_S:g} s")
        return EXIT_RUN
    return done.returncode if done.returncode >= 0 else EXIT_RUN


def _trouble(cluster: StandingCluster) -> str:
    """Why a pool cannot be asked, if so."""
    since, clear = standing.clock(cluster.since_s), f"`rlhf-ray pool down --name {cluster.pool}`"
    if cluster.starter is not None and cluster.is_starting:
        return f"process {cluster.starter.pid} starts it since {since}"
    if cluster.starter is not None:
        return f"its start at {since} was broken off; {clear} clears it away"
    if not standing.answers(cluster.address):
        return f"its cluster at {cluster.address}, started {since}, does not answer; {clear}"
    return ""


def print_pool(name: str, record: PoolRecord | None) -> None:
    """The table, or that the pool is gone from its cluster."""
    from rich.table import Table

    if record is None:
        print(f"pool {name}: its cluster runs, but its actors are gone; `rlhf-ray pool down`")
        return
    holder = record.holder()
    table = Table(title=f"pool {name}: " + (f"in use by {holder.name}" if holder else "free"))
    for column in COLUMNS:
        table.add_column(column, overflow="fold")
    for row in _rows_of(record):
        table.add_row(*row)
    screen().print(table)


def _rows_of(record: PoolRecord) -> Iterator[tuple[str, ...]]:
    """One row an actor."""
    for role, handle in record.state.roles.items():
        group, hosted = record.state.groups.get(role), handle.hosted
        gpus = "" if group is None else f"{group.gpus_per_rank}"
        if group is not None and group.share:
            gpus += f" of {group.share}"
        for rank, info in enumerate(record.actor_infos(role)):
            yield (
                role,
                f"{rank + 1} of {len(handle)}",
                gpus,
                str(info["Address"]["IPAddress"]),
                str(info["Pid"]),
                str(info["State"]).lower(),
                hosted.path if hosted else "",
                time.strftime("%H:%M:%S", time.localtime(hosted.since_s)) if hosted else "",
            )
