"""What the actors of a job's roles say of themselves after a step: waiting, memory, queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleActor
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.roles import Metrics

# How ranks name the time that they moved models in, and how a step does.
MOVES = {"offload_s": "time/offload", "reload_s": "time/reload"}


async def usage_of(
    actors_of: Mapping[str, Sequence[RoleHandle[Any]]], *, timeout_s: float
) -> Metrics:
    """Ask every actor once: of each role, those that do its work.

    Returns:
        `wait/<role>`, since the last time that this was asked; `memory/<role>_peak_gb`, of the
        actor that took most; `time/offload` and `time/reload` where models moved, of each role's
        slowest rank, over all roles; `engine/*` where a role has engines.
    """
    # Of handles that share their work, none is idle while another works: see `Pool.start`.
    metrics = {
        f"wait/{role}": max(handle.busy.take_idle_s() for handle in handles)
        for role, handles in actors_of.items()
    }
    answers = await side_by_side(
        _usages(handles, timeout_s=timeout_s) for handles in actors_of.values()
    )
    for role, of_actors in zip(actors_of, answers, strict=True):
        metrics[f"memory/{role}_peak_gb"] = max(usage["peak_gb"] for usage in of_actors)
        keys = {key for usage in of_actors for key in usage}
        for key in keys & MOVES.keys():
            slowest_s = max(usage.get(key, 0.0) for usage in of_actors)
            metrics[MOVES[key]] = metrics.get(MOVES[key], 0.0) + slowest_s
        engine_keys = keys - {"peak_gb", *MOVES}
        metrics |= {f"engine/{key}": _merged(key, of_actors) for key in engine_keys}
    return metrics


async def _usages(
    handles: Sequence[RoleHandle[Any]], *, timeout_s: float
) -> list[Mapping[str, float]]:
    answers = await side_by_side(
        handle.call(RoleActor.usage, timeout_s=timeout_s)() for handle in handles
    )
    return list(chain.from_iterable(answers))


def _merged(key: str, of_engines: Sequence[Mapping[str, float]]) -> float:
    """The largest of largest values, the mean of means, the sum of counts."""
    values = [usage[key] for usage in of_engines]
    if key.endswith("_max"):
        return max(values)
    return fmean(values) if key.endswith("_mean") else sum(values)
