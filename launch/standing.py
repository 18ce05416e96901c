"""Standing pools of this machine: where each one's cluster is, and the cluster if it is its own."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import ray
from ray._raylet import Config  # type: ignore[attr-defined]

from actors.standing_cluster import StandingCluster
from rlhf_ray.errors import ConfigError, RunError

logger = logging.getLogger(__name__)

START_S, STOP_S = 120.0, 60.0


def folder() -> Path:
    """Where the pools of this user are noted; gone with the machine's clusters at a restart."""
    return Path(tempfile.gettempdir()) / f"rlhf-ray-{os.getuid()}"


def noted() -> list[StandingCluster]:
    """The clusters of all pools that `pool up` started from this machine, by name."""
    found = sorted(folder().glob("*.json"))
    return [StandingCluster(**json.loads(path.read_text())) for path in found]


def cluster_of(pool: str) -> StandingCluster | None:
    """Where a pool was started, if from this machine."""
    return next((cluster for cluster in noted() if cluster.pool == pool), None)


def address_of(pool: str) -> str:
    """Where a pool's cluster listens.

    Raises:
        ConfigError: No such pool was started from this machine.
    """
    cluster = cluster_of(pool)
    if cluster is None:
        names = ", ".join(cluster.pool for cluster in noted()) or "none"
        raise ConfigError(
            f"ray.pool is {pool!r}, but the pools of this machine are {names}; start it with "
            "`rlhf-ray pool up`, or give ray.address as well"
        )
    use_token(pool)
    return cluster.address


def note(cluster: StandingCluster) -> None:
    """Remember where a pool is."""
    folder().mkdir(mode=0o700, exist_ok=True)
    (folder() / f"{cluster.pool}.json").write_text(json.dumps(asdict(cluster)))


def forget(pool: str) -> None:
    """Opposite of `note`."""
    for kind in ("json", "log", "token"):
        (folder() / f"{pool}.{kind}").unlink(missing_ok=True)


def start_cluster(pool: str, *, num_cpus: int, num_gpus: int) -> StandingCluster:
    """Start Ray on this machine, to stay when this process ends.

    Raises:
        RunError: It did not come up in time.
    """
    host, port = ray.util.get_node_ip_address(), _free_port()
    log = folder() / f"{pool}.log"
    folder().mkdir(mode=0o700, exist_ok=True)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--node-ip-address={host}", f"--port={port}", f"--num-cpus={num_cpus}"),
        # Another cluster on this machine has Ray's usual one.
        f"--ray-client-server-port={_free_port()}",
        *([f"--num-gpus={num_gpus}"] if num_gpus else []),
    ]
    token = _token_file(pool)
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    use_token(pool)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )
    cluster = StandingCluster(
        pool=pool,
        address=f"{host}:{port}",
        process=process.pid,
        process_started_s=psutil.Process(process.pid).create_time(),
        since_s=time.time(),
    )
    deadline_s = time.monotonic() + START_S
    try:
        while not answers(cluster.address):
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise RunError(f"Ray did not start on {cluster.address}; its log is {log}")
            time.sleep(0.2)
    except BaseException:  # an interrupt as well: nobody would know of the head
        stop_cluster(cluster)
        token.unlink()
        raise
    return cluster


def use_token(pool: str) -> None:
    """Have Ray show the token of a pool's own cluster, unless the user has set how Ray does that.

    Must come before this process connects to any cluster.
    """
    if "RAY_AUTH_MODE" in os.environ or not _token_file(pool).is_file():
        return
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(_token_file(pool)))
    Config.initialize("")  # Ray read the environment when it was imported


def _token_file(pool: str) -> Path:
    return folder() / f"{pool}.token"


def stop_cluster(cluster: StandingCluster) -> None:
    """End every process of a cluster that `start_cluster` started."""
    head = _head_of(cluster)
    if head is None:
        return
    processes = [head, *head.children(recursive=True)]
    head.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, timeout=STOP_S)
    for process in alive:
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


def _head_of(cluster: StandingCluster) -> psutil.Process | None:
    """The process of `ray start`, unless its number is another's by now."""
    if cluster.process is None or not psutil.pid_exists(cluster.process):
        return None
    process = psutil.Process(cluster.process)
    return process if process.create_time() == cluster.process_started_s else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
