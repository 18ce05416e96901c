"""What roles need of the GPUs and nodes on which their ranks are placed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.planning.engines import EngineMemory, engine_memory
from rlhf_ray.planning.layout import Cluster, Place
from rlhf_ray.planning.memory import (
    BARE_RANK_BYTES,
    GIB,
    GPU_CONTEXT_BYTES,
    MIB,
    Memory,
    model_memory,
    publication_bytes,
)
from rlhf_ray.planning.work import EngineWork, ModelWork, Work

# Beside the ranks: the driver, and the actor that assembles experience.
DRIVER_BYTES = 850 * MIB
# What a node holds that is no role.
DRIVER, RESULTS = "driver", "results"
# Libraries of a process that works on a GPU, in its node's memory.
GPU_PROCESS_BYTES = 2 * GIB


@dataclass(frozen=True, kw_only=True)
class RoleNeed:
    """What one rank of a role needs on its device, and of its node beside that.

    Attributes:
        memory: On each GPU, or of the process on the CPU.
        asleep: What stays on the GPU while another role works there.
        publishing: What it takes beside that while the GPU's engine is awake.
        engine: Of a rollout engine.
    """

    work: Work
    memory: Memory
    asleep: int
    host: int
    publishing: int = 0
    engine: EngineMemory | None = None

    @property
    def role(self) -> str:
        """Its name."""
        return self.work.role


@dataclass(frozen=True, kw_only=True)
class GpuNeed:
    """The worst moment of one GPU in a job.

    Attributes:
        stage: The job, where it is one of several.
        busy: The role whose turn it is.
        held: Bytes of each role at that moment.
    """

    node: int
    gpu: int
    stage: str
    busy: str
    held: dict[str, int]

    @property
    def total(self) -> int:
        """Of all roles."""
        return sum(self.held.values())


def role_need(work: Work, cluster: Cluster) -> RoleNeed:
    """One rank's, or one engine's."""
    match work:
        case ModelWork():
            memory = model_memory(work)
            asleep = memory.process if work.leaves else memory.resident
            return RoleNeed(
                work=work,
                memory=memory,
                asleep=asleep,
                host=memory.host,
                publishing=publication_bytes(work),
            )
        case EngineWork():
            engine = engine_memory(work, cluster.gpu_bytes)
            return RoleNeed(
                work=work,
                memory=engine.memory,
                asleep=engine.asleep if work.sleeps else engine.memory.total,
                host=engine.host,
                engine=engine,
            )
    process = GPU_CONTEXT_BYTES if work.group.gpus_per_rank else BARE_RANK_BYTES
    return RoleNeed(work=work, memory=Memory(process=process), asleep=process, host=0)


def idle_bytes(needs: Sequence[RoleNeed]) -> dict[str, int]:
    """What each role leaves on a GPU while a job that does not use it works there."""
    idle: dict[str, int] = {}
    for need in needs:
        process = GPU_CONTEXT_BYTES if need.engine is None else need.asleep
        idle[need.role] = min(process, idle.get(need.role, process))
    return idle


def gpu_needs(
    needs: Sequence[RoleNeed],
    places: Sequence[Place],
    *,
    idle: Mapping[str, int],
    stage: str,
) -> tuple[GpuNeed, ...]:
    """Roles of one GPU take turns: each time one is busy, the others hold what stays.

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
    found = []
    for (node, gpu), there in sorted(on_gpu.items()):
        moments = [
            GpuNeed(
                node=node,
                gpu=gpu,
                stage=stage,
                busy=busy,
                held={
                    role: _held(by_role[role], by_role[busy]) if role in by_role else idle[role]
                    for role in there
                },
            )
            for busy in there
            if busy in by_role
        ]
        if moments:
            found.append(max(moments, key=lambda moment: moment.total))
    return tuple(found)


def _held(need: RoleNeed, busy: RoleNeed) -> int:
    if need is busy:
        return need.memory.total
    # Before such a role leaves, no other has loaded its model.
    first = isinstance(busy.work, ModelWork) and busy.work.leaves
    if first:
        return need.memory.process
    return need.asleep + (need.publishing if busy.engine is not None else 0)


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
