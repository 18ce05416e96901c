"""Where a standing pool's cluster is, as `rlhf-ray pool up` notes it on its machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of this machine.

    Attributes:
        pid: Its number.
        started_s: When it began (since the epoch), which tells it from a later one of its number.
    """

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> Process:
        """The one that has this number now."""
        return cls(pid=pid, started_s=psutil.Process(pid).create_time())

    @classmethod
    def own(cls) -> Process:
        """The one that asks."""
        return cls.of(os.getpid())

    def find(self) -> psutil.Process | None:
        """It, while it runs."""
        try:
            process = psutil.Process(self.pid)
            runs = process.status() != psutil.STATUS_ZOMBIE
            return process if runs and process.create_time() == self.started_s else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True, kw_only=True)
class StandingCluster:
    """The cluster that a pool is on.

    Attributes:
        pool: The pool's name.
        address: As `ray.init` takes it; empty as long as nothing was started.
        head: `ray start`, where the cluster is the pool's own; else None.
        starter: The `pool up` that starts the pool, or was ended amid that; None once it is up.
        since_s: When the name was taken, since the epoch.
    """

    pool: str
    address: str
    head: Process | None
    starter: Process | None
    since_s: float

    @property
    def is_starting(self) -> bool:
        """Whether somebody is at it."""
        return self.starter is not None and self.starter.find() is not None

    @property
    def is_left(self) -> bool:
        """Whether anything may run under its name; of another's cluster nobody can know here."""
        if self.is_starting:
            return True
        if self.head is None:
            return bool(self.address)
        return self.head.find() is not None
