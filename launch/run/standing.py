"""Standing pools: their registry on this machine, and the clusters that they are on.

The registry has a file for each pool, in a folder of its user's alone. A pool on no cluster of
somebody else's gets one of its own, which is started and ended here.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import ray
from pydantic import TypeAdapter

from actors.cluster.network import unused_ports
from actors.cluster.ray_token import use_token_in
from actors.pool.standing_cluster import Process, StandingCluster
from launch.run.signals import uninterrupted
from rlhf_ray.errors import ConfigError, RunError

LOCK_S = 30.0
_ENTRY = TypeAdapter(StandingCluster)
START_S, STOP_S = 120.0, 60.0
# Of Ray's own words, where it does not start.
SHOWN_CHARACTERS = 2000


def folder() -> Path:
    """Where the pools of this user are registered; gone with the machine's clusters at a restart.

    Raises:
        ConfigError: It is another user's, or open to others, who could plant files or read tokens.
    """
    path = Path(tempfile.gettempdir()) / f"rlhf-ray-{os.getuid()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{path} must be a folder of user {os.getuid()} with mode 700, got "
            f"{stat.filemode(found.st_mode)} of user {found.st_uid}"
        )
    return path


def entries() -> list[StandingCluster]:
    """The clusters of all pools that `pool up` started from this machine, by name."""
    found = []
    for path in sorted(folder().glob("*.json")):
        with suppress(FileNotFoundError):  # taken down meanwhile
            found.append(_ENTRY.validate_json(path.read_bytes()))
    return found


def cluster_of(pool: str) -> StandingCluster | None:
    """Where a pool was started, if from this machine."""
    return next((cluster for cluster in entries() if cluster.pool == pool), None)


def claim(pool: str) -> StandingCluster:
    """Take a name for a pool that this process will start, before anything runs.

    Raises:
        ConfigError: It is another pool's.
    """
    with _alone():
        known = cluster_of(pool)
        if known is not None and known.is_left:
            since = f"since {clock(known.since_s)}"
            if known.starter is not None and known.is_starting:
                raise ConfigError(f"process {known.starter.pid} starts pool {pool} {since}")
            raise ConfigError(f"pool {pool} is there {since}: `rlhf-ray pool down --name {pool}`")
        claimed = StandingCluster(
            pool=pool, address="", head=None, starter=Process.own(), since_s=time.time()
        )
        register(claimed)
    return claimed


def register(cluster: StandingCluster) -> None:
    """Remember where a pool is."""
    path = entry_file(cluster.pool)
    aside = path.with_suffix(f".{os.getpid()}")  # others read meanwhile
    aside.write_bytes(_ENTRY.dump_json(cluster))
    aside.replace(path)


def forget(cluster: StandingCluster) -> None:
    """Opposite of `claim`; nothing where the name is another pool's by now."""
    with _alone():
        now = cluster_of(cluster.pool)
        if now is not None and now.since_s == cluster.since_s:
            for path in (log_file, token_file, entry_file):
                path(cluster.pool).unlink(missing_ok=True)


def entry_file(pool: str) -> Path:
    """Where a pool's cluster is registered."""
    return folder() / f"{pool}.json"


def log_file(pool: str) -> Path:
    """What `ray start` says, where the cluster is the pool's own."""
    return folder() / f"{pool}.log"


def token_file(pool: str) -> Path:
    """What whoever connects with a pool's own cluster must show."""
    return folder() / f"{pool}.token"


def clock(since_s: float) -> str:
    """A time as users read it."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(since_s))


@contextmanager
def _alone() -> Iterator[None]:
    """Let no other process take or free a name meanwhile; a lock ends with its process."""
    held = os.open(folder(), os.O_RDONLY)
    deadline_s = time.monotonic() + LOCK_S
    try:
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() > deadline_s:
                raise RunError(f"another process has kept {folder()} for {LOCK_S:g} s")
            time.sleep(0.05)
        yield
    finally:
        os.close(held)


def address_of(pool: str) -> str:
    """Where a job finds a pool's cluster.

    Raises:
        ConfigError: No such pool was started from this machine.
    """
    cluster = cluster_of(pool)
    if cluster is None:
        names = ", ".join(cluster.pool for cluster in entries()) or "none"
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
    token = token_file(claimed.pool)
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    use_token(claimed.pool)
    with uninterrupted() as came:  # nobody would know of the head
        process = _start_head(claimed.pool, command)
        head = Process.of(process.pid)
        cluster = replace(claimed, address=f"{host}:{port}", head=head)
        register(cluster)
    if came:
        raise KeyboardInterrupt
    deadline_s = time.monotonic() + START_S
    while not answers(cluster.address):
        if process.poll() is not None or time.monotonic() > deadline_s:
            log = log_file(claimed.pool).read_text(errors="replace")
            raise RunError(f"Ray did not start on {cluster.address}:\n{log[-SHOWN_CHARACTERS:]}")
        time.sleep(0.2)
    return cluster


def _start_head(pool: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
    with log_file(pool).open("wb") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
        )


def use_token(pool: str) -> None:
    """Have Ray show the token of a pool's own cluster, unless the user has set how Ray does that.

    Must come before this process connects to any cluster.
    """
    token = token_file(pool)
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
