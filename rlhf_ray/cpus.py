"""How many cores of this machine a process may use."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Those it may run on, and no more than a container's share of time is worth; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(allowed or 1, _container_cores(cgroup))))


def _container_cores(cgroup: Path) -> float:
    """Microseconds of CPU in each period, by version 2 of Linux's control groups, or version 1."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = [word for name in names for word in (cgroup / name).read_text().split()]
            quota_us, period_us = map(int, words)
        except (OSError, ValueError):  # there is no such file, or it says "max"
            continue
        if quota_us > 0:
            return quota_us / period_us
    return float("inf")
