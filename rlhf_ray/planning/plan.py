"""The plan of a job, or of all stages of a pipeline on one pool, and why they do not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.tools.stages import Stage, groups_of, stages_of
from rlhf_ray.learner.deepspeed.memory import ModelRank
from rlhf_ray.memory import GIB, MIB, Memory
from rlhf_ray.planning.groups import plan_groups, total_cpus
from rlhf_ray.planning.layout import Cluster, Place, lay_out
from rlhf_ray.planning.moments import GpuNeed, gpu_needs, idle_memory
from rlhf_ray.planning.needs import Engine, RoleNeed
from rlhf_ray.planning.roles import Batches, Shapes, roles_of

# Parts of a rank's memory, in words.
PART_NAMES = {
    "process": "the process itself",
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimiser states",
    "kv_cache": "the key-value cache",
    "buckets": "buckets",
    "activations": "activations",
    "logits": "logits",
    "buffers": "buffers",
    "host": "processes and offloaded states",
}
# Beside the ranks: the driver, and the actor that builds experience.
DRIVER_BYTES = 850 * MIB
# What a node holds that is no role.
DRIVER, RESULTS = "driver", "results"
# Libraries of a process that works on a GPU, in its node's memory.
GPU_PROCESS_BYTES = 2 * GIB


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One job: what its roles need, one step of it, and the worst moment of each GPU."""

    name: str
    roles: tuple[RoleNeed, ...]
    batches: Batches
    gpus: tuple[GpuNeed, ...]


@dataclass(frozen=True, kw_only=True)
class HeldResult:
    """One stage's weights, in the object store of its ranks' nodes until the last user has them.

    Attributes:
        role: Whose ranks keep them, each an equal share.
        bytes: Of all shares together.
        used_by: Later stages that start from it.
    """

    stage: str
    role: str
    bytes: int
    used_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is known before anything starts.

    Attributes:
        hosts: Memory of each node by role, each role's largest over all stages.
        held: Results that stages leave to later ones.
        cpus: Cores that a rank of each role reserves.
        by_turns: Roles on CPUs that compute with all cores of their node.
    """

    cluster: Cluster
    stages: tuple[StagePlan, ...]
    places: tuple[Place, ...]
    hosts: tuple[Mapping[str, int], ...]
    held: tuple[HeldResult, ...]
    cpus: Mapping[str, float]
    by_turns: frozenset[str]
    reserved_cpus: float

    @property
    def fits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    @cached_property
    def problems(self) -> tuple[Problem, ...]:
        """All that speaks against it."""
        found = [
            *(
                problem
                for stage in self.stages
                for problem in stage_problems(stage.name, stage.roles, stage.gpus, self.cluster)
            ),
            *host_problems(self.hosts, self.roles, self.cluster),
        ]
        return tuple(found)

    @property
    def roles(self) -> tuple[RoleNeed, ...]:
        """Of all stages."""
        return tuple(need for stage in self.stages for need in stage.roles)

    @property
    def gpus(self) -> tuple[GpuNeed, ...]:
        """Each at its worst moment over all stages."""
        worst: dict[tuple[int, int], GpuNeed] = {}
        for gpu in (gpu for stage in self.stages for gpu in stage.gpus):
            place = (gpu.node, gpu.gpu)
            worst[place] = max(worst.get(place, gpu), gpu, key=lambda one: one.total)
        return tuple(worst[place] for place in sorted(worst))

    @property
    def host_bytes(self) -> tuple[int, ...]:
        """Of each node."""
        return tuple(sum(held.values()) for held in self.hosts)

    def place_bytes(self, place: Place) -> int:
        """What one rank or engine takes of its node's memory, in the stage in which it is most."""
        return max(
            need.host + (GPU_PROCESS_BYTES * len(place.gpus) or need.memory.total)
            for need in self.roles
            if need.role == place.role
        )


def plan_job(config: AnyJob, shapes: Shapes, cluster: Cluster) -> Plan:
    """Plan one job on a cluster.

    Raises:
        ConfigError: The cluster has no place for a role, whatever its memory.
    """
    return plan_jobs(stages_of(config), shapes, cluster)


def plan_jobs(jobs: Sequence[Stage], shapes: Shapes, cluster: Cluster) -> Plan:
    """Plan jobs that one pool runs one after the other.

    Raises:
        ConfigError: The cluster has no place for a role, whatever its memory.
    """
    groups = groups_of(jobs)
    places = tuple(lay_out(groups, cluster))
    roles = [roles_of(job.rooted, shapes, cluster.gpu_bytes) for job in jobs]
    idle = idle_memory(need for needs, _ in roles for need in needs)
    plan = Plan(
        cluster=cluster,
        stages=tuple(
            StagePlan(
                name=job.name,
                roles=tuple(needs),
                batches=batches,
                gpus=tuple(gpu_needs(job.name, needs, places, idle)),
            )
            for job, (needs, batches) in zip(jobs, roles, strict=True)
        ),
        places=places,
        hosts=(),
        held=tuple(_held_results(jobs, [needs for needs, _ in roles])),
        cpus={role: group.reserved_cpus for role, group in groups.items()},
        by_turns=frozenset(
            role
            for role, group in groups.items()
            if group.cpus_per_rank == "auto" and not group.gpus_per_rank
        ),
        reserved_cpus=total_cpus(plan_groups(groups)),
    )
    return replace(plan, hosts=tuple(_hosts(plan)))


def _held_results(
    jobs: Sequence[Stage], needs: Sequence[Sequence[RoleNeed]]
) -> Iterator[HeldResult]:
    """Every result that a later stage starts from, of jobs in their order with their roles."""
    for job, roles in zip(jobs, needs, strict=True):
        users = tuple(later.name for later in jobs if job.name in later.sources)
        for need in roles if users else ():
            if need.role == job.rooted.trained_role and isinstance(need.model, ModelRank):
                size = need.model.num_parameters * need.model.bytes_each
                yield HeldResult(stage=job.name, role=need.role, bytes=size, used_by=users)


def _hosts(plan: Plan) -> Iterator[Mapping[str, int]]:
    """Memory of each node: processes, what GPUs leave to the host, and all results together."""
    num_ranks = Counter(place.role for place in plan.places)
    results = Counter[str]()
    for result in plan.held:
        results[result.role] += result.bytes
    for node in range(plan.cluster.nodes):
        held = Counter({} if node else {DRIVER: DRIVER_BYTES})
        for place in plan.places:
            if place.node == node:
                held[place.role] += plan.place_bytes(place)
                held[RESULTS] += results[place.role] // num_ranks[place.role]
        yield dict(+held)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a job does not fit: which role, which part of its memory, and the whole story."""

    role: str
    part: str
    message: str


def stage_problems(
    name: str, needs: Sequence[RoleNeed], gpus: Sequence[GpuNeed], cluster: Cluster
) -> Iterator[Problem]:
    """All that speaks against one job, named where it is one of several; each GPU at its worst."""
    prefix = f"stage {name}: " if name else ""
    for need in needs:
        if isinstance(need.model, Engine):
            for part, message in _of_engine(need, need.model):
                yield Problem(role=need.role, part=part, message=prefix + message)
    # One for each role whose turn overfills a GPU, at its worst GPU.
    worst: dict[str, GpuNeed] = {}
    for gpu in gpus:
        busy = gpu.moment.role
        if gpu.total > cluster.usable_gpu_bytes:
            worst[busy] = max(worst.get(busy, gpu), gpu, key=lambda one: one.total)
    for gpu in worst.values():
        role, memory = max(gpu.moment.memories.items(), key=lambda one: one[1].total)
        part = _largest_part(memory)
        held = ", ".join(f"{name} {_gib(size)}" for name, size in gpu.moment.held.items())
        yield Problem(
            role=role,
            part=part,
            message=f"{prefix}{role} needs {_gib(memory.total)} GB a rank, "
            f"{_gib(memory.parts[part])} of them for {PART_NAMES[part]}: GPU {gpu.gpu} of node "
            f"{gpu.node} would hold {_gib(gpu.total)} of {_gib(cluster.gpu_bytes)} GB while "
            f"{gpu.moment.words} ({held})",
        )


def _of_engine(need: RoleNeed, engine: Engine) -> Iterator[tuple[str, str]]:
    """The part, and what is wrong with it."""
    if not engine.heads_divide:
        yield (
            "weights",
            f"rollout: {PART_NAMES['weights']} with {engine.shape.num_heads} heads for queries and "
            f"{engine.shape.num_kv_heads} for keys and values cannot be split over {engine.gpus} "
            "GPUs",
        )
    tokens, longest = need.cache_tokens or 0, engine.max_model_len
    if tokens < 0:
        part = _largest_part(need.memory)
        yield (
            part,
            f"rollout's share of a GPU leaves nothing for the key-value cache: {PART_NAMES[part]} "
            f"take {_gib(need.memory.parts[part])} GB",
        )
    elif tokens < longest:
        yield (
            "kv_cache",
            f"rollout: {PART_NAMES['kv_cache']} would hold {tokens:,} tokens, less than one "
            f"sequence of {longest:,}",
        )


def host_problems(
    hosts: Sequence[Mapping[str, int]], needs: Sequence[RoleNeed], cluster: Cluster
) -> Iterator[Problem]:
    """The fullest node's, of `hosts` by role, where it is known how much one has."""
    sizes = [sum(held.values()) for held in hosts]
    if not cluster.node_bytes or max(sizes) <= cluster.node_bytes:
        return
    node = sizes.index(max(sizes))
    held = hosts[node]
    need = max(needs, key=lambda need: (held.get(need.role, 0), need.host + need.memory.total))
    on_host = need.host > need.memory.total or bool(need.group.gpus_per_rank)
    part = "host" if on_host else _largest_part(need.memory)
    shown = ", ".join(f"{name} {_gib(size)}" for name, size in held.items())
    yield Problem(
        role=need.role,
        part=part,
        message=f"node {node} would hold {_gib(sizes[node])} of {_gib(cluster.node_bytes)} GB of "
        f"memory ({shown}), most of it {need.role}'s {PART_NAMES[part]}",
    )


def _largest_part(memory: Memory) -> str:
    """The name of the part that takes most."""
    return max(memory.parts, key=lambda part: memory.parts[part])


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"
