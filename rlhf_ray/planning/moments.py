"""The moments of a job on one GPU, and what each role holds of it at each.

Roles take turns. Those that share their GPUs with engines leave them in between: their weights come
back to score, all of them to update, and the weights alone to be published, beside the engine's,
whose cache comes last. Others keep their model where it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_ray.planning.engines import EngineMemory, engine_memory
from rlhf_ray.planning.layout import Cluster
from rlhf_ray.planning.memory import (
    BARE_RANK_BYTES,
    GPU_CONTEXT_BYTES,
    Memory,
    largest,
    model_memory,
    publishing_memory,
    scoring_memory,
    updating_memory,
)
from rlhf_ray.planning.work import EngineWork, ModelWork, Work

# What a role does in its turn; `load` where it neither scores nor learns.
Turn = Literal["generate", "receive", "load", "score", "update", "publish"]


@dataclass(frozen=True, kw_only=True)
class RoleNeed:
    """What one rank of a role needs on its device, and of its node beside that.

    Attributes:
        turns: By what it does, on each of its GPUs, or as a process on the CPU.
        waiting: What stays there while another role has its turn.
        host: Memory of the node.
        engine: Of a rollout engine.
    """

    work: Work
    turns: Mapping[Turn, Memory]
    waiting: Memory
    host: int
    engine: EngineMemory | None = None

    @property
    def role(self) -> str:
        """Its name."""
        return self.work.role

    @property
    def memory(self) -> Memory:
        """At its largest turn; an engine's is what it generates with."""
        return largest(self.turns.values()) if self.engine is None else self.engine.memory


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


def role_need(work: Work, cluster: Cluster) -> RoleNeed:
    """One rank's, or one engine's."""
    match work:
        case ModelWork():
            return _offloading(work) if work.offloads else _staying(work)
        case EngineWork():
            engine = engine_memory(work, cluster.gpu_bytes)
            return RoleNeed(
                work=work,
                turns={"generate": engine.memory, "receive": engine.receiving},
                waiting=engine.asleep,
                host=engine.host,
                engine=engine,
            )
    bare = Memory(process=GPU_CONTEXT_BYTES if work.group.gpus_per_rank else BARE_RANK_BYTES)
    return RoleNeed(work=work, turns={"score": bare}, waiting=bare, host=0)


def _staying(work: ModelWork) -> RoleNeed:
    whole = model_memory(work)
    turns: dict[Turn, Memory] = {_own_turn(work): whole}
    if work.publishes_mb and work.on_gpu:
        turns["publish"] = publishing_memory(work, at_rest=whole.at_rest)
    waiting = whole.bare if work.leaves else whole.at_rest
    return RoleNeed(work=work, turns=turns, waiting=waiting, host=whole.host)


def _own_turn(work: ModelWork) -> Turn:
    if work.trains:
        return "update"
    return "load" if work.use == "publish" else "score"


def _offloading(work: ModelWork) -> RoleNeed:
    whole = updating_memory(work) if work.trains else model_memory(work)
    turns: dict[Turn, Memory] = {}
    if work.reading is not None:
        turns["score"] = scoring_memory(work)
    if work.use != "read":
        turns[_own_turn(work)] = whole if work.trains else whole.at_rest
    if work.publishes_mb:
        turns["publish"] = publishing_memory(work, at_rest=whole.loaded)
    # Gradients are dropped: between steps there is nothing in them.
    host = whole.host + whole.weights + whole.optimizer
    return RoleNeed(work=work, turns=turns, waiting=whole.bare, host=host)


def moments_of(needs: Sequence[RoleNeed]) -> list[Moment]:
    """Every turn of every role on a GPU that these roles share."""
    return [
        Moment(
            role=busy.role,
            turn=turn,
            memories={need.role: _at(need, busy, turn) for need in needs},
        )
        for busy in needs
        for turn in busy.turns
    ]


def _at(need: RoleNeed, busy: RoleNeed, turn: Turn) -> Memory:
    """What a role holds while `busy`, perhaps itself, has its turn."""
    if need is busy:
        return busy.turns[turn]
    work = need.work
    if need.engine is not None:
        return need.engine.receiving if turn == "publish" else need.waiting
    if not isinstance(work, ModelWork):
        return need.waiting
    if isinstance(busy.work, ModelWork) and busy.work.leaves:
        return need.waiting.bare  # no other role has loaded its model yet
    # Who scored before keeps its weights until all have, and who learns until all have learnt.
    stays = (turn == "score" and "score" in need.turns) or (turn == "update" and work.trains)
    return need.memory.loaded if work.offloads and stays else need.waiting
