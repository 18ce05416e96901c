"""What one rank of each role needs in its turns and between them, and of its node beside that.

Roles take turns. Those that share their GPUs with engines leave them in between: their weights come
back to score, all of them to update, and the weights alone to be published, beside the engine's,
whose cache comes last. Others keep their model where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from rlhf_ray.config.base import GroupConfig
from rlhf_ray.learner.deepspeed.memory import (
    BARE_RANK_BYTES,
    GPU_CONTEXT_BYTES,
    ModelRank,
    publishing_memory,
    reading_memory,
    resting_memory,
    training_memory,
)
from rlhf_ray.memory import Memory, largest
from rlhf_ray.planning.engines import (
    Engine,
    cache_bytes,
    cache_bytes_per_token,
    engine_host_bytes,
    received_bytes,
    working_memory,
)

# What a role does in its turn; `load` where its model is only made ready.
Turn = Literal["generate", "receive", "load", "score", "update", "publish"]


@dataclass(frozen=True, kw_only=True)
class RoleNeed:
    """What one rank of a role, or one engine, needs.

    Attributes:
        model: None of reward functions, or of a remote scorer.
        turns: Memory by what it does: on each of its GPUs, or as a process on the CPU.
        waiting: What stays there while another role has its turn.
        beside: The same in turns in which it is more.
        host: Memory of its node beside that.
        leaves: Whether it is gone before another role's model is loaded.
        cache_tokens: That the key-value cache of an engine holds; negative where weights and
            activations alone exceed its share.
    """

    role: str
    group: GroupConfig
    model: ModelRank | Engine | None = None
    turns: Mapping[Turn, Memory]
    waiting: Memory
    beside: Mapping[Turn, Memory] = field(default_factory=dict)
    host: int = 0
    leaves: bool = False
    cache_tokens: int | None = None

    @property
    def memory(self) -> Memory:
        """At its largest turn; an engine's is what it generates with."""
        return self.turns.get("generate") or largest(self.turns.values())


def bare_need(role: str, group: GroupConfig) -> RoleNeed:
    """A rank without a model: reward functions, or a remote scorer."""
    bare = Memory(process=GPU_CONTEXT_BYTES if group.gpus_per_rank else BARE_RANK_BYTES)
    return RoleNeed(role=role, group=group, turns={"score": bare}, waiting=bare)


def model_need(
    role: str, rank: ModelRank, *, offloads: bool = False, leaves: bool = False
) -> RoleNeed:
    """A rank with a model.

    One that `offloads` lives on engines' GPUs, and waits in the node's memory while others work
    there; one that `leaves` is gone before another role's model is loaded.
    """
    whole, host = resting_memory(rank)
    loaded = whole.loaded if offloads else whole
    turns: dict[Turn, Memory] = {}
    if rank.use == "publish":
        turns["load"] = whole
    elif rank.tokens("read"):
        turns["score"] = reading_memory(rank, loaded)
    if rank.use == "train":
        turns["update"] = training_memory(rank, whole)
    if rank.publishes_mb:
        turns["publish"] = publishing_memory(rank, loaded)
    # Who scored before keeps its weights until all have, and who learns until all have learnt.
    together: tuple[Turn, ...] = ("score", "update") if offloads else ()
    beside = {turn: loaded for turn in together if turn in turns}
    # Gradients are dropped: between steps there is nothing in them.
    away = whole.weights + whole.optimizer if offloads else 0
    return RoleNeed(
        role=role,
        group=rank.group,
        model=rank,
        turns=turns,
        waiting=whole.bare if offloads or leaves else whole,
        beside=beside,
        host=host + away,
        leaves=leaves,
    )


def engine_need(engine: Engine, gpu_bytes: int) -> RoleNeed:
    """One engine's, on each of its GPUs or on the CPU."""
    cache = cache_bytes(engine, gpu_bytes)
    whole = replace(working_memory(engine), kv_cache=max(0, cache))
    # One that shares its GPU has no cache yet; one that does not stops with its own full.
    kept = whole.loaded if engine.sleeps else whole.at_rest
    receiving = replace(kept, buffers=received_bytes(engine))
    return RoleNeed(
        role="rollout",
        group=engine.group,
        model=engine,
        turns={"generate": whole, "receive": receiving},
        waiting=whole.bare if engine.sleeps else whole,
        beside={"publish": receiving},
        host=engine_host_bytes(engine),
        cache_tokens=cache // cache_bytes_per_token(engine),
    )
