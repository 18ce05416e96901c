"""The registry of this machine's standing pools: a file each, in a folder of its user's alone."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import TypeAdapter

from actors.pool.standing_cluster import Process, StandingCluster
from rlhf_ray.errors import ConfigError, RunError

LOCK_S = 30.0
_ENTRY = TypeAdapter(StandingCluster)


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
        write(claimed)
    return claimed


def write(cluster: StandingCluster) -> None:
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
    try:
        _lock(held, deadline_s=time.monotonic() + LOCK_S)
        yield
    finally:
        os.close(held)


def _lock(file: int, *, deadline_s: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise RunError(f"another process has kept {folder()} for {LOCK_S:g} s") from None
            time.sleep(0.05)
