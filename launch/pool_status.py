"""The command `rlhf-ray pool status`: a line for each actor, or why nobody can tell."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from actors.pool.record import PoolRecord
from actors.pool.standing_cluster import StandingCluster
from launch.run import pool_registry as registry
from launch.run import standing
from launch.run.cluster import disconnect, join
from launch.tables.format import screen
from rlhf_ray.errors import EXIT_RUN

STATUS_S = 120.0
COLUMNS = ("role", "rank", "GPUs", "node", "pid", "state", "model held", "since")


def status(name: str) -> int:
    """Tell of one pool or of all; also where there is none or its cluster is gone."""
    clusters = [cluster for cluster in registry.entries() if name in ("", cluster.pool)]
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
        disconnect()
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
    since, clear = registry.clock(cluster.since_s), f"`rlhf-ray pool down --name {cluster.pool}`"
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


def _rows_of(record: PoolRecord) -> list[tuple[str, ...]]:
    """One row an actor."""
    state = record.state
    rows: list[tuple[str, ...]] = []
    for role, handle in state.roles.items():
        group = state.groups.get(role)
        hosted = handle.hosted
        gpus = "" if group is None else f"{group.gpus_per_rank}"
        if group is not None and group.share:
            gpus += f" of {group.share}"
        for rank, info in enumerate(record.actor_infos(role)):
            rows.append(
                (
                    role,
                    f"{rank + 1} of {len(handle)}",
                    gpus,
                    *_place(info),
                    hosted.path if hosted else "",
                    time.strftime("%H:%M:%S", time.localtime(hosted.since_s)) if hosted else "",
                )
            )
    return rows


def _place(info: Mapping[str, Any]) -> tuple[str, str, str]:
    """Node, process and state, as the cluster's table of actors has them."""
    return str(info["Address"]["IPAddress"]), str(info["Pid"]), str(info["State"]).lower()
