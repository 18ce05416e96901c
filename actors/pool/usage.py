"""What the actors of a job's roles say of themselves after a step: spans, memory, queues."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import ActorUsage, RoleActor
from actors.pool.clocks import Clocks
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.metrics.spans import ASKED, PROCESS, ProcessSpans, Taken, idle_s, of_driver
from rlhf_ray.metrics.usage import Used

# The spans in which ranks move models, and what a step calls their time.
MOVES = {"offload": "time/offload", "reload": "time/reload"}


async def usage_of(roles: Sequence[RoleHandle[Any]], clocks: Clocks, *, timeout_s: float) -> Used:
    """Ask every actor of these roles once.

    Returns:
        `wait/<role>`, in which nobody waited for any of its actors; `memory/<role>_peak_gb`, of the
        actor that took most; `time/offload` and `time/reload` where models moved, of each role's
        slowest rank, over all roles; `engine/*` where a role has engines. All since the last time
        that this was asked, as are the spans.
    """
    driver = PROCESS.take()
    answers = await side_by_side(_usages(handle, clocks, timeout_s=timeout_s) for handle in roles)
    metrics: dict[str, float] = {}
    spans = [of_driver(driver.ended)]
    for handle, by_rank in zip(roles, answers, strict=True):
        role, of_actors = handle.name, list(by_rank.values())
        metrics[f"wait/{role}"] = _waited_s(role, driver)
        if not of_actors:  # all of them are being replaced
            continue
        metrics[f"memory/{role}_peak_gb"] = max(usage.figures["peak_gb"] for usage in of_actors)
        for operation, name in MOVES.items():
            slowest_s = max(_seconds_of(operation, usage.taken) for usage in of_actors)
            if slowest_s:
                metrics[name] = metrics.get(name, 0.0) + slowest_s
        engine_keys = {key for usage in of_actors for key in usage.figures} - {"peak_gb"}
        metrics |= {f"engine/{key}": _merged(key, of_actors) for key in engine_keys}
        spans += [_in_drivers_time(role, rank, usage, clocks) for rank, usage in by_rank.items()]
    return Used(metrics=metrics, spans=spans)


async def _usages(
    handle: RoleHandle[Any], clocks: Clocks, *, timeout_s: float
) -> Mapping[int, ActorUsage]:
    asked_ns, ranks = time.monotonic_ns(), handle.present
    usages: list[ActorUsage] = await handle.call(RoleActor.usage, timeout_s=timeout_s)()
    answered_ns = time.monotonic_ns()
    for usage in usages:
        clocks.heard(
            usage.clock,
            asked_ns=asked_ns,
            stamped_ns=usage.taken.until_ns,
            answered_ns=answered_ns,
        )
    return dict(zip(ranks, usages, strict=True))


def _waited_s(role: str, driver: Taken) -> float:
    """How long nobody waited for any of its actors."""
    calls = [one for one in (*driver.ended, *driver.running) if one.labels.get(ASKED) == role]
    return idle_s(calls, since_ns=driver.since_ns, until_ns=driver.until_ns)


def _seconds_of(operation: str, taken: Taken) -> float:
    return sum(one.seconds for one in taken.ended if one.operation == operation)


def _in_drivers_time(role: str, rank: int, usage: ActorUsage, clocks: Clocks) -> ProcessSpans:
    ahead_ns = clocks.ahead_ns(usage.clock)
    spans = [one.earlier(ahead_ns) if ahead_ns else one for one in usage.taken.ended]
    return ProcessSpans(role=role, rank=rank, node=usage.node, spans=spans)


def _merged(key: str, of_engines: Sequence[ActorUsage]) -> float:
    """The largest of largest values, the mean of means, the sum of counts."""
    values = [usage.figures[key] for usage in of_engines]
    if key.endswith("_max"):
        return max(values)
    return fmean(values) if key.endswith("_mean") else sum(values)
