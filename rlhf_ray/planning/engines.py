"""What a rollout engine takes: vLLM has its share of a GPU, and the cache gets what is left."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config.base import GroupConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.learner.deepspeed.memory import published_bytes
from rlhf_ray.memory import GIB, MIB, Memory, dtype_bytes
from rlhf_ray.models.shape import ModelShape

# Resident memory of vLLM 0.32's worker process on the CPU before its model is there, and of the
# two processes beside it, measured.
WORKER_BYTES, HELPERS_BYTES = 670 * MIB, 1300 * MIB
# Context, kernels and CUDA graphs of a worker, and what the GPUs of one engine exchange through:
# vLLM counts them into its share, and sleep leaves them where they are.
WORKER_GPU_BYTES, PARALLEL_GPU_BYTES = 1536 * MIB, 2 * GIB
# Log-probabilities of the sampled tokens: logits in float32, scaled, and normalized.
LOGITS_BYTES = 3 * 4
# On the CPU a published bucket exists as a message, as bytes, and as loaded weights.
BUCKET_COPIES = 3


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
    if engine.gpus:
        return published_bytes(engine.bucket_mb, engine.shape, engine.bytes_each)
    return BUCKET_COPIES * min(engine.bucket_mb * MIB, engine.num_bytes)


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
