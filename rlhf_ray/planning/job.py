"""The plan of a whole job: what each role needs, where it goes, and whether that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_ray.config.base import JobConfig
from rlhf_ray.planning.batches import Batches
from rlhf_ray.planning.engines import EngineMemory, engine_memory
from rlhf_ray.planning.groups import plan_groups, total_cpus
from rlhf_ray.planning.layout import Cluster, Place, lay_out
from rlhf_ray.planning.memory import (
    BARE_RANK_BYTES,
    GIB,
    GPU_CONTEXT_BYTES,
    MIB,
    Memory,
    model_memory,
)
from rlhf_ray.planning.roles import Shapes, work_of
from rlhf_ray.planning.work import EngineWork, ModelWork, Work

# Of a GPU's memory: what fragmentation of the caching allocator needs.
FREE_SHARE = 0.05
# In words.
PART_NAMES = {
    "process": "the process itself",
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser states",
    "kv_cache": "the key-value cache",
    "activations": "activations",
    "logits": "logits",
    "buffers": "buffers",
    "host": "processes and offloaded states",
}
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


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a job does not fit: which role, which part of its memory, and the whole story."""

    role: str
    part: str
    message: str


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """Everything that is known before a job starts."""

    cluster: Cluster
    roles: tuple[RoleNeed, ...]
    batches: Batches
    places: tuple[Place, ...]
    gpus: tuple[GpuNeed, ...]
    host_bytes: tuple[int, ...]
    cpus: float
    problems: tuple[Problem, ...]

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    @property
    def num_actors(self) -> int:
        """Ranks of all roles."""
        return len(self.places)


def plan_job(config: JobConfig, shapes: Shapes, cluster: Cluster) -> JobPlan:
    """Plan a job on a cluster.

    Raises:
        ConfigError: The cluster has no place for a role, whatever its memory.
    """
    work, batches = work_of(config, shapes)
    groups = {one.role: one.group for one in work}
    places = lay_out(groups, cluster)
    needs = tuple(_need(one, cluster) for one in work)
    gpus = _gpu_needs(needs, places)
    hosts = _host_needs(needs, places, cluster)
    problems = [*_engine_problems(needs), *_gpu_problems(gpus, needs, cluster)]
    return JobPlan(
        cluster=cluster,
        roles=needs,
        batches=batches,
        places=tuple(places),
        gpus=gpus,
        host_bytes=tuple(sum(held.values()) for held in hosts),
        cpus=total_cpus(plan_groups(groups)),
        problems=(*problems, *_host_problems(hosts, needs, cluster)),
    )


def _need(work: Work, cluster: Cluster) -> RoleNeed:
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


def _gpu_needs(needs: Sequence[RoleNeed], places: Sequence[Place]) -> tuple[GpuNeed, ...]:
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


def _host_needs(
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


def _host_problems(
    hosts: Sequence[dict[str, int]], needs: Sequence[RoleNeed], cluster: Cluster
) -> list[Problem]:
    """The fullest node, where it is known how much one has."""
    sizes = [sum(held.values()) for held in hosts]
    if not cluster.node_bytes or max(sizes) <= cluster.node_bytes:
        return []
    node = sizes.index(max(sizes))
    held = hosts[node]
    [need] = [n for n in needs if n.role == max((n.role for n in needs), key=_held_by(held))]
    on_host = need.host > need.memory.total or bool(need.work.group.gpus_per_rank)
    part = "host" if on_host else largest_part(need.memory)
    shown = ", ".join(f"{name} {_gib(size)}" for name, size in held.items())
    return [
        Problem(
            role=need.role,
            part=part,
            message=f"node {node} would hold {_gib(sizes[node])} of {_gib(cluster.node_bytes)} GB "
            f"of memory ({shown}), most of it {need.role}'s {PART_NAMES[part]}",
        )
    ]


def _held_by(held: dict[str, int]) -> Callable[[str], int]:
    return lambda role: held.get(role, 0)


def _engine_problems(needs: Sequence[RoleNeed]) -> list[Problem]:
    problems = []
    for need in needs:
        if need.engine is None or not isinstance(need.work, EngineWork):
            continue
        tokens, longest = need.engine.cache_tokens, need.work.max_model_len
        if tokens < longest:
            problems.append(_cache_problem(need.memory, tokens, longest))
    return problems


def _cache_problem(memory: Memory, tokens: int, longest: int) -> Problem:
    if tokens >= 0:
        message = (
            f"rollout's key-value cache would hold {tokens:,} tokens, less than one sequence of "
            f"{longest:,}"
        )
        return Problem(role="rollout", part="kv_cache", message=message)
    part = largest_part(memory)
    message = (
        f"rollout's share of a GPU leaves nothing for the key-value cache: {PART_NAMES[part]} "
        f"take {_gib(memory.parts[part])} GB"
    )
    return Problem(role="rollout", part=part, message=message)


def _gpu_problems(
    gpus: Sequence[GpuNeed], needs: Sequence[RoleNeed], cluster: Cluster
) -> list[Problem]:
    """One for each role whose turn overfills a GPU, at its worst GPU."""
    by_role = {need.role: need for need in needs}
    worst: dict[str, GpuNeed] = {}
    for gpu in gpus:
        room = cluster.gpu_bytes * (1 - FREE_SHARE)
        if gpu.total > room and gpu.total > (worst[gpu.busy].total if gpu.busy in worst else 0):
            worst[gpu.busy] = gpu
    problems = []
    for busy, gpu in worst.items():
        role = max(gpu.held, key=lambda name: gpu.held[name])
        memory = by_role[role].memory
        part = largest_part(memory)
        held = ", ".join(f"{name} {_gib(size)}" for name, size in gpu.held.items())
        problems.append(
            Problem(
                role=role,
                part=part,
                message=f"{role} needs {_gib(memory.total)} GB a rank, {_gib(memory.parts[part])} "
                f"of them for {PART_NAMES[part]}: GPU {gpu.gpu} of node {gpu.node} would hold "
                f"{_gib(gpu.total)} of {_gib(cluster.gpu_bytes)} GB while {busy} works ({held})",
            )
        )
    return problems


def largest_part(memory: Memory) -> str:
    """The name of the part that takes most."""
    return max(memory.parts, key=lambda part: memory.parts[part])


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
