"""The cluster of a standing pool: where it is, and starting and ending one of the pool's own."""

from __future__ import annotations

import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import psutil
import ray

from actors.cluster.network import unused_ports
from actors.cluster.ray_token import use_token_in
from actors.pool.standing_cluster import Process, StandingCluster
from launch.run import pool_registry as registry
from launch.run.signals import uninterrupted
from rlhf_ray.errors import ConfigError, RunError

START_S, STOP_S = 120.0, 60.0
# Of Ray's own words, where it does not start.
SHOWN_CHARACTERS = 2000


def address_of(pool: str) -> str:
    """Where a job finds a pool's cluster.

    Raises:
        ConfigError: No such pool was started from this machine.
    """
    cluster = registry.cluster_of(pool)
    if cluster is None:
        names = ", ".join(cluster.pool for cluster in registry.entries()) or "none"
        raise ConfigError(
            f"ray.pool is {pool!r}, but the pools of this machine are {names}; start it with "
            "`rlhf-ray pool up`, or give ray.address as well"
        )
    if cluster.starter is not None:
        raise ConfigError(f"pool {pool} is not up yet; `rlhf-ray pool status` tells of it")
    use_token(pool)
    return cluster.address


def start_cluster(claimed: StandingCluster, *, num_cpus: int, num_gpus: int) -> StandingCluster:
    """Start Ray on this machine, to stay when this process ends; it finds GPUs where they are 0.

    Whoever calls ends what is registered of it, here too where this fails.

    Raises:
        RunError: It did not come up in time.
    """
    host = ray.util.get_node_ip_address()
    port, client_port = unused_ports(2, host=host)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--node-ip-address={host}", f"--port={port}", f"--num-cpus={num_cpus}"),
        # Another cluster on this machine has Ray's usual one.
        *(f"--ray-client-server-port={client_port}", "--dashboard-agent-listen-port=0"),
        *([f"--num-gpus={num_gpus}"] if num_gpus else []),
    ]
    token = registry.token_file(claimed.pool)
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    use_token(claimed.pool)
    with uninterrupted() as came:  # nobody would know of the head
        process = _start_head(claimed.pool, command)
        head = Process.of(process.pid)
        cluster = replace(claimed, address=f"{host}:{port}", head=head)
        registry.write(cluster)
    if came:
        raise KeyboardInterrupt
    deadline_s = time.monotonic() + START_S
    while not answers(cluster.address):
        if process.poll() is not None or time.monotonic() > deadline_s:
            log = registry.log_file(claimed.pool).read_text(errors="replace")
            raise RunError(f"Ray did not start on {cluster.address}:\n{log[-SHOWN_CHARACTERS:]}")
        time.sleep(0.2)
    return cluster


def _start_head(pool: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
    with registry.log_file(pool).open("wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )


def use_token(pool: str) -> None:
    """Have Ray show the token of a pool's own cluster, unless the user has set how Ray does that.

    Must come before this process connects to any cluster.
    """
    token = registry.token_file(pool)
    if token.is_file():
        use_token_in(token)


def stop_cluster(cluster: StandingCluster) -> None:
    """End every process of a cluster that `start_cluster` started."""
    head = cluster.head.find() if cluster.head else None
    if head is None:
        return
    processes = [head]
    with suppress(psutil.NoSuchProcess):  # it ends by itself meanwhile, and its children with it
        processes += head.children(recursive=True)
        head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=STOP_S)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_S)


def answers(address: str) -> bool:
    """Whether a Ray head listens there."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False
