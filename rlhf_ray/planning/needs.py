"""What one rank of each role needs in its turns and between them, and of its node beside that.

Roles take turns. Those that share their GPUs with engines leave them in between: their weights come
back to score, all of them to update, and the weights alone to be published, beside the engine's,
whose cache comes last. Others keep their model where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.learner.deepspeed.memory import (
    BARE_RANK_BYTES,
    GPU_CONTEXT_BYTES,
    ModelRank,
    published_bytes,
    publishing_memory,
    reading_memory,
    resting_memory,
    training_memory,
)
from rlhf_ray.memory import GIB, MIB, Memory, dtype_bytes, largest
from rlhf_ray.models.shape import ModelShape

# Resident memory of vLLM 0.32's worker process on the CPU before its model is there, and of the
# two processes beside it, measured.
WORKER_BYTES, HELPERS_BYTES = 670 * MIB, 1300 * MIB
# Context, kernels and CUDA graphs of a worker, and what the GPUs of one engine exchange through:
# vLLM counts them into its share, and sleep leaves them where they are.
WORKER_GPU_BYTES, PARALLEL_GPU_BYTES = 1536 * MIB, 2 * GIB
# Log-probabilities of the sampled tokens: logits in float32, scaled, and normalized.
LOGITS_BYTES = 3 * 4
# On the CPU a published bucket is mapped, and layers keep of it what they cannot load yet.
BUCKET_COPIES = 2


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A rollout engine.

    Attributes:
        max_model_len: Prompt and response tokens together.
        sleeps: Whether it gives its GPUs to other roles between rollouts.
        bucket_mb: Weights come in buckets of about this size.
    """

    shape: ModelShape
    rollout: RolloutConfig
    group: GroupConfig
    max_model_len: int
    sleeps: bool
    bucket_mb: int

    @property
    def gpus(self) -> int:
        """Over which it is split; 0 on the CPU."""
        return self.group.gpus_per_rank

    @property
    def bytes_each(self) -> int:
        """Of a weight, an activation, and a number of the cache."""
        return dtype_bytes(self.rollout.dtype, on_gpu=bool(self.gpus))

    @property
    def num_bytes(self) -> int:
        """Weights of the whole engine."""
        return self.shape.num_parameters("lm") * self.bytes_each

    @property
    def heads_divide(self) -> bool:
        """As vLLM divides heads: fewer key and value heads than GPUs are copied."""
        gpus, kv_heads = max(1, self.gpus), self.shape.num_kv_heads
        divides = kv_heads % gpus == 0 or (kv_heads < gpus and gpus % kv_heads == 0)
        return self.shape.num_heads % gpus == 0 and divides


def working_memory(engine: Engine) -> Memory:
    """All but the cache, on each of its GPUs or in its worker process."""
    rollout, each = engine.rollout, engine.bytes_each
    if engine.gpus:
        return Memory(
            process=WORKER_GPU_BYTES + (PARALLEL_GPU_BYTES if engine.gpus > 1 else 0),
            weights=engine.num_bytes // engine.gpus,
            activations=_prefill_bytes(engine, rollout.max_num_batched_tokens),
            logits=_logits_bytes(engine),
        )
    # The product with a tied head keeps a packed copy of it; prompts are prefilled whole.
    packed = 0 if engine.shape.num_lm_head else engine.shape.num_embedding * each
    prefilled = max(rollout.max_num_batched_tokens, engine.max_model_len)
    return Memory(
        process=WORKER_BYTES,
        weights=engine.num_bytes + packed,
        activations=_prefill_bytes(engine, prefilled),
        logits=_logits_bytes(engine),
        buffers=received_bytes(engine),
    )


def cache_bytes(engine: Engine, gpu_bytes: int) -> int:
    """On each GPU what is left of the share; below 0 where all else exceeds it."""
    if not engine.gpus:
        return int(engine.rollout.kv_cache_gb * GIB)
    return int(engine.rollout.gpu_memory_share * gpu_bytes) - working_memory(engine).total


def cache_bytes_per_token(engine: Engine) -> int:
    """On one GPU, which has one head for keys and values at least."""
    heads = max(1, engine.shape.num_kv_heads // max(1, engine.gpus))
    return engine.shape.num_layers * engine.bytes_each * 2 * heads * engine.shape.head_dim


def received_bytes(engine: Engine) -> int:
    """New weights on their way in."""
    bucket = published_bytes(engine.bucket_mb, engine.shape, engine.bytes_each)
    return bucket if engine.gpus else BUCKET_COPIES * min(bucket, engine.num_bytes)


def engine_host_bytes(engine: Engine) -> int:
    """Of its node: the sleeping weights, or the processes beside a worker on the CPU."""
    if engine.gpus:
        return engine.num_bytes if engine.sleeps else 0
    return HELPERS_BYTES + received_bytes(engine)


def _prefill_bytes(engine: Engine, tokens: int) -> int:
    """Hidden states, whole on each GPU, and its share of the inner width with what is gated."""
    shape = engine.shape
    inner = (3 if shape.is_gated else 2) * shape.ffn // max(1, engine.gpus)
    return tokens * engine.bytes_each * (3 * shape.hidden + inner)


def _logits_bytes(engine: Engine) -> int:
    """Gathered on every GPU of an engine: each samples."""
    return LOGITS_BYTES * engine.rollout.max_num_seqs * engine.shape.vocabulary


# What a role does in its turn; `load` where its model is only made ready.
Turn = Literal["generate", "receive", "load", "score", "update", "publish"]


@dataclass(frozen=True, kw_only=True)
class RoleNeed:
    """What one rank of a role, or one engine, needs.

    Attributes:
        model: None of reward functions, of a remote scorer, and of environments.
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


def bare_need(role: str, group: GroupConfig, turn: Turn = "score") -> RoleNeed:
    """A process without a model: reward functions, services or environments."""
    bare = Memory(process=GPU_CONTEXT_BYTES if group.gpus_per_rank else BARE_RANK_BYTES)
    return RoleNeed(role=role, group=group, turns={turn: bare}, waiting=bare)


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
