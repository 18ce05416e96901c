"""What the actors of a job's roles say of themselves after a step: waiting, memory, queues."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from actors.cluster.role import RoleActor, RoleHandle
from rlhf_ray.roles import Metrics

# How ranks name the time that they moved models in, and how a step does.
MOVES = {"offload_s": "time/offload", "reload_s": "time/reload"}


async def usage_of(roles: Sequence[RoleHandle[Any]], *, timeout_s: float) -> Metrics:
    """Ask every actor once.

    Args:
        roles: Of the job.
        timeout_s: Deadline of an answer; actors answer beside their work.

    Returns:
        `wait/<role>`, since the last time that this was asked; `memory/<role>_peak_gb`, of the
        rank that took most; `time/offload` and `time/reload` where models moved, of each role's
        slowest rank, over all roles; `engine/*` where a role has engines.
    """
    metrics = {f"wait/{role.name}": role.busy.take_idle_s() for role in roles}
    answers = await asyncio.gather(
        *(role.call(RoleActor.usage, timeout_s=timeout_s)() for role in roles)
    )
    for role, of_ranks in zip(roles, answers, strict=True):
        metrics[f"memory/{role.name}_peak_gb"] = max(usage["peak_gb"] for usage in of_ranks)
        for key in of_ranks[0].keys() & MOVES.keys():
            slowest_s = max(usage.get(key, 0.0) for usage in of_ranks)
            metrics[MOVES[key]] = metrics.get(MOVES[key], 0.0) + slowest_s
        engine_keys = of_ranks[0].keys() - {"peak_gb", *MOVES}
        metrics |= {f"engine/{key}": _merged(key, of_ranks) for key in engine_keys}
    return metrics


def _merged(key: str, of_engines: Sequence[Mapping[str, float]]) -> float:
    """The largest of largest values, the mean of means, the sum of counts."""
    values = [usage[key] for usage in of_engines]
    if key.endswith("_max"):
        return max(values)
    return fmean(values) if key.endswith("_mean") else sum(values)
