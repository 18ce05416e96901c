"""What roles need of the GPUs and nodes on which their ranks are placed."""

from __future__ import annotations

from collections.abc import Sequence
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
)
from rlhf_ray.planning.work import EngineWork, ModelWork, Work

# Beside the ranks: the driver, and the actor that assembles experience.
DRIVER_BYTES = 850 * MIB
# Libraries of a process that works on a GPU, in its node's memory.
GPU_PROCESS_BYTES = 2 * GIB


@dataclass(frozen=True, kw_only=True)
class RoleNeed:
    """What one rank of a role needs on its device, and of its node beside that.

    Attributes:
        memory: On each GPU, or of the process on the CPU.
        asleep: What stays on the GPU while another role works there.
        engine: Of a rollout engine.
    """

    work: Work
    memory: Memory
    asleep: int
    host: int
    engine: EngineMemory | None = None

    @property
    def role(self) -> str:
        """Its name."""
        return self.work.role


@dataclass(frozen=True, kw_only=True)
class GpuNeed:
    """The worst moment of one GPU.

    Attributes:
        busy: The role whose turn it is.
        held: Bytes of each role at that moment.
    """

    node: int
    gpu: int
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
            return RoleNeed(work=work, memory=memory, asleep=asleep, host=memory.host)
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


def gpu_needs(needs: Sequence[RoleNeed], places: Sequence[Place]) -> tuple[GpuNeed, ...]:
    """Roles of one GPU take turns: each time one is busy, the others hold what stays."""
    by_role = {need.role: need for need in needs}
    on_gpu: dict[tuple[int, int], list[RoleNeed]] = {}
    for place in places:
        for gpu in place.gpus:
            on_gpu.setdefault((place.node, gpu), []).append(by_role[place.role])
    found = []
    for (node, gpu), there in sorted(on_gpu.items(), key=lambda item: item[0]):
        moments = [
            GpuNeed(
                node=node,
                gpu=gpu,
                busy=busy.role,
                held={need.role: _held(need, busy) for need in there},
            )
            for busy in there
        ]
        found.append(max(moments, key=lambda moment: moment.total))
    return tuple(found)


def _held(need: RoleNeed, busy: RoleNeed) -> int:
    if need is busy:
        return need.memory.total
    # Before such a role leaves, no other has loaded its model.
    first = isinstance(busy.work, ModelWork) and busy.work.leaves
    return need.memory.process if first else need.asleep


def host_needs(
    needs: Sequence[RoleNeed], places: Sequence[Place], cluster: Cluster
) -> list[dict[str, int]]:
    """Memory of each node by role: processes, and what GPUs leave to the host."""
    by_role = {need.role: need for need in needs}
    found: list[dict[str, int]] = [{} for _ in range(cluster.nodes)]
    found[0]["driver"] = DRIVER_BYTES
    for place in places:
        need, held = by_role[place.role], found[place.node]
        process = GPU_PROCESS_BYTES * len(place.gpus) or need.memory.total
        held[place.role] = held.get(place.role, 0) + need.host + process
    return found
