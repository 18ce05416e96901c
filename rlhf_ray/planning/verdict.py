"""Why a job does not fit, in words that name the role and the part of its memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf_ray.planning.layout import Cluster
from rlhf_ray.planning.memory import GIB, Memory
from rlhf_ray.planning.moments import Moment, RoleNeed, Turn
from rlhf_ray.planning.needs import GpuNeed
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
TURN_WORDS: dict[Turn, str] = {
    "generate": "generates",
    "receive": "receives weights",
    "load": "is loaded",
    "score": "scores",
    "update": "updates",
    "publish": "publishes",
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
    problems = [*_engine_problems(needs), *_gpu_problems(gpus, cluster)]
    if not stage:
        return problems
    return [replace(problem, message=f"stage {stage}: {problem.message}") for problem in problems]


def _engine_problems(needs: Sequence[RoleNeed]) -> list[Problem]:
    problems: list[Problem] = []
    for need in needs:
        if need.engine is None or not isinstance(need.work, EngineWork):
            continue
        problems += _split_problems(need.work)
        tokens, longest = need.engine.cache_tokens, need.work.max_model_len
        if tokens < longest:
            problems.append(_cache_problem(need.memory, tokens, longest))
    return problems


def _split_problems(work: EngineWork) -> Iterator[Problem]:
    """As vLLM divides heads: fewer key and value heads than GPUs are copied."""
    gpus, kv_heads = max(1, work.group.gpus_per_rank), work.shape.num_kv_heads
    divides = kv_heads % gpus == 0 or (kv_heads < gpus and gpus % kv_heads == 0)
    if work.shape.num_heads % gpus or not divides:
        message = (
            f"rollout: {PART_NAMES['weights']} with {work.shape.num_heads} heads for queries and "
            f"{kv_heads} for keys and values cannot be split over {gpus} GPUs"
        )
        yield Problem(role="rollout", part="weights", message=message)


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


def _gpu_problems(gpus: Sequence[GpuNeed], cluster: Cluster) -> list[Problem]:
    """One for each role whose turn overfills a GPU, at its worst GPU."""
    worst: dict[str, GpuNeed] = {}
    for gpu in gpus:
        too_full = gpu.total > usable_gpu_bytes(cluster)
        busy = gpu.moment.role
        if too_full and gpu.total > (worst[busy].total if busy in worst else 0):
            worst[busy] = gpu
    problems: list[Problem] = []
    for gpu in worst.values():
        moment = gpu.moment
        role, memory = max(moment.memories.items(), key=lambda one: one[1].total)
        part = _largest_part(memory)
        held = ", ".join(f"{name} {_gib(size)}" for name, size in moment.held.items())
        problems.append(
            Problem(
                role=role,
                part=part,
                message=f"{role} needs {_gib(memory.total)} GB a rank, {_gib(memory.parts[part])} "
                f"of them for {PART_NAMES[part]}: GPU {gpu.gpu} of node {gpu.node} would hold "
                f"{_gib(gpu.total)} of {_gib(cluster.gpu_bytes)} GB while {happening(moment)} "
                f"({held})",
            )
        )
    return problems


def happening(moment: Moment) -> str:
    """What is going on, in words."""
    return f"{moment.role} {TURN_WORDS[moment.turn]}"


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
