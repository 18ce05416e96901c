"""Why a job does not fit, in words that name the role and the part of its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf_ray.planning.layout import Cluster
from rlhf_ray.planning.memory import GIB, Memory
from rlhf_ray.planning.needs import GpuNeed, RoleNeed
from rlhf_ray.planning.work import EngineWork

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


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a job does not fit: which role, which part of its memory, and the whole story."""

    role: str
    part: str
    message: str


def usable_gpu_bytes(cluster: Cluster) -> float:
    """What roles may take of a GPU."""
    return cluster.gpu_bytes * (1 - FREE_SHARE)


def stage_problems(
    needs: Sequence[RoleNeed], gpus: Sequence[GpuNeed], cluster: Cluster, *, stage: str
) -> list[Problem]:
    """All that speaks against one job on its engines and GPUs; nothing where it fits.

    Args:
        needs: Of the roles.
        gpus: Each at its worst moment.
        cluster: What there is.
        stage: The job's name, where it is one of several.
    """
    problems = [*_engine_problems(needs), *_gpu_problems(gpus, needs, cluster)]
    if not stage:
        return problems
    return [replace(problem, message=f"stage {stage}: {problem.message}") for problem in problems]


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
            f"rollout: {PART_NAMES['kv_cache']} would hold {tokens:,} tokens, less than one "
            f"sequence of {longest:,}"
        )
        return Problem(role="rollout", part="kv_cache", message=message)
    part = _largest_part(memory)
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
        too_full = gpu.total > usable_gpu_bytes(cluster)
        if too_full and gpu.total > (worst[gpu.busy].total if gpu.busy in worst else 0):
            worst[gpu.busy] = gpu
    problems = []
    for busy, gpu in worst.items():
        role = max(gpu.held, key=lambda name: gpu.held[name])
        memory = by_role[role].memory
        part = _largest_part(memory)
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


def _largest_part(memory: Memory) -> str:
    """The name of the part that takes most."""
    return max(memory.parts, key=lambda part: memory.parts[part])


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}"


def host_problems(
    hosts: Sequence[Mapping[str, int]], needs: Sequence[RoleNeed], cluster: Cluster
) -> list[Problem]:
    """The fullest node's, where it is known how much one has.

    Args:
        hosts: Memory of each node by role.
        needs: Of the roles, in all jobs.
        cluster: What there is.
    """
    sizes = [sum(held.values()) for held in hosts]
    if not cluster.node_bytes or max(sizes) <= cluster.node_bytes:
        return []
    node = sizes.index(max(sizes))
    held = hosts[node]
    need = max(needs, key=lambda need: (held.get(need.role, 0), need.host + need.memory.total))
    on_host = need.host > need.memory.total or bool(need.work.group.gpus_per_rank)
    part = "host" if on_host else _largest_part(need.memory)
    shown = ", ".join(f"{name} {_gib(size)}" for name, size in held.items())
    return [
        Problem(
            role=need.role,
            part=part,
            message=f"node {node} would hold {_gib(sizes[node])} of {_gib(cluster.node_bytes)} GB "
            f"of memory ({shown}), most of it {need.role}'s {PART_NAMES[part]}",
        )
    ]
