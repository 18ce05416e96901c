"""Memory of a rollout engine: vLLM takes its share of a GPU, and the cache gets what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlhf_ray.planning.memory import GIB, MIB, Memory, bucket_bytes
from rlhf_ray.planning.model_shape import ModelShape
from rlhf_ray.planning.work import EngineWork, dtype_bytes

# Resident memory of vLLM 0.32's worker process on the CPU before its model is there, and of the
# two processes beside it, measured.
WORKER_BYTES, HELPERS_BYTES = 670 * MIB, 1300 * MIB
# Context, kernels and CUDA graphs of a worker, and what the GPUs of one engine exchange through:
# vLLM counts them into its share, and sleep leaves them where they are.
WORKER_GPU_BYTES, PARALLEL_GPU_BYTES = 1536 * MIB, 2 * GIB
# Log-probabilities of the sampled tokens: logits in float32, scaled, and normalized.
LOGITS_COPIES = 3
# A published bucket exists as a message, as bytes, and as loaded weights.
BUCKET_COPIES = 3


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """One GPU of an engine, or its worker process on the CPU.

    Attributes:
        memory: Of the device, generating.
        asleep: What stays on it while other roles use it.
        receiving: While new weights come.
        cache_tokens: That the key-value cache of one engine holds; negative where weights and
            activations alone exceed the share.
        host: Of its node: the sleeping weights, the processes beside the worker.
    """

    memory: Memory
    asleep: Memory
    receiving: Memory
    cache_tokens: int
    host: int


def engine_memory(work: EngineWork, gpu_bytes: int) -> EngineMemory:
    """One engine's need on each of its GPUs, or on the CPU."""
    if work.group.gpus_per_rank:
        return _on_gpu(work, gpu_bytes)
    return _on_cpu(work)


def _on_gpu(work: EngineWork, gpu_bytes: int) -> EngineMemory:
    shape, gpus = work.shape, work.group.gpus_per_rank
    each = dtype_bytes(work.rollout.dtype, on_gpu=True)
    weights = shape.num_parameters("lm") * each // gpus
    activations = _prefill(shape, work.rollout.max_num_batched_tokens, each, gpus=gpus)
    logits = _logits(work)
    share = int(work.rollout.gpu_memory_share * gpu_bytes)
    process = WORKER_GPU_BYTES + (PARALLEL_GPU_BYTES if gpus > 1 else 0)
    cache = share - weights - activations - logits - process
    per_token = _cache_bytes_per_token(shape, gpus, each)
    memory = Memory(
        process=process,
        weights=weights,
        kv_cache=max(0, cache),
        activations=activations,
        logits=logits,
    )
    bucket = bucket_bytes(work.bucket_mb, shape, each)
    return EngineMemory(
        memory=memory,
        asleep=memory.bare if work.sleeps else memory,
        # One that shares its GPU has no cache yet; one that does not stops with its own full.
        receiving=replace(memory.loaded if work.sleeps else memory.at_rest, buffers=bucket),
        cache_tokens=cache // per_token,
        host=weights * gpus if work.sleeps else 0,
    )


def _on_cpu(work: EngineWork) -> EngineMemory:
    shape, each = work.shape, dtype_bytes(work.rollout.dtype, on_gpu=False)
    weights = shape.num_parameters("lm") * each
    # The product with a tied head keeps a packed copy of the embedding.
    tied = shape.num_embedding * each if shape.lm_head is None else 0
    cache = int(work.rollout.kv_cache_gb * GIB)
    bucket = min(work.bucket_mb * MIB, weights)
    # Prompts are prefilled whole.
    prefilled = max(work.rollout.max_num_batched_tokens, work.max_model_len)
    memory = Memory(
        process=WORKER_BYTES,
        weights=weights + tied,
        kv_cache=cache,
        activations=_prefill(shape, prefilled, each),
        logits=_logits(work),
        buffers=BUCKET_COPIES * bucket,
    )
    return EngineMemory(
        memory=memory,
        asleep=memory,
        receiving=memory,
        cache_tokens=cache // _cache_bytes_per_token(shape, 1, each),
        host=HELPERS_BYTES + BUCKET_COPIES * bucket,
    )


def _prefill(shape: ModelShape, tokens: int, each: int, *, gpus: int = 1) -> int:
    """Hidden states, whole on each GPU, and its share of the inner width with what is gated."""
    inner = (3 if shape.is_gated else 2) * shape.ffn // gpus
    return tokens * each * (3 * shape.hidden + inner)


def _logits(work: EngineWork) -> int:
    """Gathered on every GPU of an engine: each samples."""
    return LOGITS_COPIES * 4 * work.rollout.max_num_seqs * work.shape.vocabulary


def _cache_bytes_per_token(shape: ModelShape, gpus: int, each: int) -> int:
    # Fewer key-value heads than GPUs are copied, so that each GPU holds one at least.
    heads = max(1, shape.num_kv_heads // gpus)
    return len(shape.layers) * each * shape.kv_width * heads // shape.num_kv_heads
