"""Why jobs do not fit, in words that name the role and the part of its memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.memory import GIB, Memory
from rlhf_ray.planning.engines import Engine
from rlhf_ray.planning.layout import Cluster
from rlhf_ray.planning.moments import GpuNeed
from rlhf_ray.planning.needs import RoleNeed

# In words.
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
