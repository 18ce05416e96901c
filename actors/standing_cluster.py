"""Where a standing pool's cluster is, as `rlhf-ray pool up` notes it on its machine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StandingCluster:
    """The cluster that a pool is on.

    Attributes:
        pool: The pool's name.
        address: As `ray.init` takes it.
        process: Of `ray start`, where the cluster is the pool's own; else None.
        process_started_s: When that process began, which tells it from a later one of its number.
        since_s: When the pool was started; both since the epoch.
    """

    pool: str
    address: str
    process: int | None
    process_started_s: float
    since_s: float
