"""Who may use a standing pool: one job at a time."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A job that has the pool.

    Attributes:
        job_id: Ray's, of the driver.
        name: What its user calls it: its run folder.
        since_s: Since the epoch.
    """

    job_id: str
    name: str
    since_s: float


class Lease:
    """The pool's one lease; a holder whose driver is gone has lost it."""

    def __init__(self, holder: Holder | None = None) -> None:
        """One that this job has from the beginning, or that nobody has."""
        self.holder = holder

    def acquire(self, wanted: Holder, running_jobs: Collection[str]) -> Holder:
        """Take the lease if it is free.

        Args:
            wanted: Who asks.
            running_jobs: Ray's ids of all drivers that are alive.

        Returns:
            Who has it now: `wanted`, or the other job.
        """
        if self.current(running_jobs) is None:
            self.holder = wanted
        assert self.holder is not None
        return self.holder

    def release(self, job_id: str) -> None:
        """Give it back; nothing where another job has it."""
        if self.holder is not None and self.holder.job_id == job_id:
            self.holder = None

    def current(self, running_jobs: Collection[str]) -> Holder | None:
        """Who has it, if that job is still alive."""
        if self.holder is not None and self.holder.job_id in running_jobs:
            return self.holder
        return None
