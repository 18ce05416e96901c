"""The moments of a job on its GPUs, and the worst of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rlhf_ray.learner.deepspeed.memory import GPU_CONTEXT_BYTES
from rlhf_ray.memory import Memory
from rlhf_ray.planning.layout import Place
from rlhf_ray.planning.needs import RoleNeed, Turn

TURN_WORDS: dict[Turn, str] = {
    "generate": "generates",
    "receive": "receives weights",
    "load": "is loaded",
    "score": "scores",
    "update": "updates",
    "publish": "publishes",
}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One role's turn on a GPU.

    Attributes:
        memories: Of each role there.
    """

    role: str
    turn: Turn
    memories: Mapping[str, Memory]

    @property
    def held(self) -> dict[str, int]:
        """Bytes of each role."""
        return {role: memory.total for role, memory in self.memories.items()}

    @property
    def total(self) -> int:
        """Of all roles."""
        return sum(self.held.values())

    @property
    def words(self) -> str:
        """What is going on."""
        return f"{self.role} {TURN_WORDS[self.turn]}"


def moments_of(needs: Sequence[RoleNeed]) -> list[Moment]:
    """Every turn of every role on a GPU that these roles share."""
    return [
        Moment(
            role=busy.role,
            turn=turn,
            memories={need.role: _held(need, busy, turn) for need in needs},
        )
        for busy in needs
        for turn in busy.turns
    ]


def _held(need: RoleNeed, busy: RoleNeed, turn: Turn) -> Memory:
    """What a role holds while `busy`, perhaps itself, has its turn."""
    if need is busy:
        return busy.turns[turn]
    if busy.leaves:  # no other role has loaded its model yet
        return need.waiting.bare
    return need.beside.get(turn, need.waiting)


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


def idle_memory(needs: Iterable[RoleNeed]) -> dict[str, Memory]:
    """What each role leaves on a GPU while a job that does not use it works there."""
    idle: dict[str, Memory] = {}
    for need in needs:
        left = Memory(process=GPU_CONTEXT_BYTES) if need.cache_tokens is None else need.waiting
        idle[need.role] = min(left, idle.get(need.role, left), key=lambda memory: memory.total)
    return idle


def gpu_needs(
    stage: str, needs: Sequence[RoleNeed], places: Sequence[Place], idle: Mapping[str, Memory]
) -> Iterator[GpuNeed]:
    """Each GPU that a stage's roles use, at its worst moment; the pool's other roles wait."""
    by_role = {need.role: need for need in needs}
    on_gpu: dict[tuple[int, int], list[str]] = {}
    for place in places:
        for gpu in place.gpus:
            on_gpu.setdefault((place.node, gpu), []).append(place.role)
    worst: dict[tuple[str, ...], Moment] = {}
    for (node, gpu), there in sorted(on_gpu.items()):
        roles = tuple(there)
        used = [by_role[role] for role in roles if role in by_role]
        if not used:
            continue
        if roles not in worst:
            moment = max(moments_of(used), key=lambda moment: moment.total)
            unused = {role: idle[role] for role in roles if role not in by_role}
            worst[roles] = replace(moment, memories={**moment.memories, **unused})
        yield GpuNeed(node=node, gpu=gpu, stage=stage, moment=worst[roles])
