"""The command `rlhf-ray pool status`: what runs where, or why nobody can tell."""

from __future__ import annotations

import subprocess
import sys

from actors.pool.record import PoolRecord
from actors.pool.standing_cluster import StandingCluster
from launch.run import pool_registry as registry
from launch.run import standing
from launch.run.cluster import disconnect, join
from launch.tables.pool import print_pool
from rlhf_ray.errors import EXIT_RUN

STATUS_S = 120.0


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
