"""What roles need of the GPUs and nodes on which their ranks are placed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf_ray.planning.layout import Cluster, Place
from rlhf_ray.planning.memory import GIB, GPU_CONTEXT_BYTES, MIB, Memory
from rlhf_ray.planning.moments import Moment, RoleNeed, moments_of

# Beside the ranks: the driver, and the actor that assembles experience.
DRIVER_BYTES = 850 * MIB
# What a node holds that is no role.
DRIVER, RESULTS = "driver", "results"
# Libraries of a process that works on a GPU, in its node's memory.
GPU_PROCESS_BYTES = 2 * GIB


@dataclass(frozen=True, kw_only=True)
class GpuNeed:
    """The worst moment of one GPU in a job.

    Attributes:
        stage: The job, where it is one of several.
    """

    node: int
    gpu: int
    stage: str
    moment: Moment

    @property
    def total(self) -> int:
        """Bytes of all roles."""
        return self.moment.total


def idle_memory(needs: Sequence[RoleNeed]) -> dict[str, Memory]:
    """What each role leaves on a GPU while a job that does not use it works there."""
    idle: dict[str, Memory] = {}
    for need in needs:
        left = Memory(process=GPU_CONTEXT_BYTES) if need.engine is None else need.waiting
        before = idle.get(need.role, left)
        idle[need.role] = min(left, before, key=lambda memory: memory.total)
    return idle


def gpu_needs(
    needs: Sequence[RoleNeed],
    places: Sequence[Place],
    *,
    idle: Mapping[str, Memory],
    stage: str,
) -> tuple[GpuNeed, ...]:
    """Each GPU that the job uses, at its worst moment.

    Args:
        needs: Of the roles that the job uses.
        places: Of these and of the pool's other roles.
        idle: What the others leave on a GPU.
        stage: The job's name.
    """
    by_role = {need.role: need for need in needs}
    on_gpu: dict[tuple[int, int], list[str]] = {}
    for place in places:
        for gpu in place.gpus:
            on_gpu.setdefault((place.node, gpu), []).append(place.role)
    worst: dict[tuple[str, ...], Moment | None] = {}
    found = []
    for (node, gpu), there in sorted(on_gpu.items()):
        roles = tuple(there)
        if roles not in worst:
            used = [by_role[role] for role in roles if role in by_role]
            unused = {role: idle[role] for role in roles if role not in by_role}
            worst[roles] = _worst_moment(used, unused)
        moment = worst[roles]
        if moment is not None:
            found.append(GpuNeed(node=node, gpu=gpu, stage=stage, moment=moment))
    return tuple(found)


def _worst_moment(used: Sequence[RoleNeed], unused: Mapping[str, Memory]) -> Moment | None:
    moments = [
        replace(moment, memories={**moment.memories, **unused}) for moment in moments_of(used)
    ]
    return max(moments, key=lambda moment: moment.total, default=None)


def host_needs(
    needs: Sequence[Sequence[RoleNeed]],
    places: Sequence[Place],
    cluster: Cluster,
    *,
    results: Mapping[str, int],
) -> list[dict[str, int]]:
    """Memory of each node: processes, what GPUs leave to the host, and results that are held.

    Args:
        needs: Of the roles of each job; the largest counts.
        places: Of every role.
        cluster: The nodes.
        results: Bytes that each role's ranks keep together for later jobs.
    """
    found: list[dict[str, int]] = [{} for _ in range(cluster.nodes)]
    found[0][DRIVER] = DRIVER_BYTES
    num_ranks = Counter(place.role for place in places)
    for place in places:
        held = found[place.node]
        mine = [need for roles in needs for need in roles if need.role == place.role]
        most = max(place_bytes(need, place) for need in mine)
        held[place.role] = held.get(place.role, 0) + most
        if place.role in results:
            share = results[place.role] // num_ranks[place.role]
            held[RESULTS] = held.get(RESULTS, 0) + share
    return found


def place_bytes(need: RoleNeed, place: Place) -> int:
    """What one rank or engine takes of its node's memory."""
    return need.host + (GPU_PROCESS_BYTES * len(place.gpus) or need.memory.total)
