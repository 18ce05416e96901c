"""Memory of one rank by part, on a GPU or as a process on the CPU.

Weights, gradients and optimiser states follow from what DeepSpeed keeps at each ZeRO stage
(https://arxiv.org/abs/1910.02054, section 3, and its code); activations from the tensors that
transformers' layers save for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from rlhf_ray.planning.model_shape import Linear, ModelShape
from rlhf_ray.planning.work import ModelWork

MIB, GIB = 2**20, 2**30
# Bytes of a pass's tensor by its width.
Held = Callable[..., float]

# DeepSpeed's defaults, in weights: what it reduces at a time, and keeps gathered under ZeRO-3.
REDUCE_BUCKET, MAX_LIVE_PARAMETERS = 500_000_000, 1_000_000_000
# A process' own share of a GPU: CUDA's context, cuBLAS workspaces, loaded kernels.
GPU_CONTEXT_BYTES = 512 * MIB
# Resident memory on the CPU before a model is there, measured with torch 2.13, transformers 5.19
# and DeepSpeed 0.19: a rank with nothing to load, one with a model, one that trains it.
BARE_RANK_BYTES, MODEL_RANK_BYTES, LEARNER_BYTES = 325 * MIB, 515 * MIB, 560 * MIB
# glibc returns blocks from this size on to the system when they are freed. Smaller ones leave
# holes in its heap: measured, it holds 1.75 to 1.95 times as much as is in use.
RETURNED_BLOCK_BYTES, HEAP_FACTOR = 32 * MIB, 1.85
# bfloat16 logits become float32, are scaled, and have a gradient; softmax makes one more.
LOGITS_COPIES = 4
# 4-bit weights with double-quantized scales: https://arxiv.org/abs/2305.14314, section 3.
QUANTIZED_BYTES = {"4bit": 0.516, "8bit": 1.0}


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by part.

    The first four stay between passes; `activations`, `logits` and `buffers` are a pass's own.

    Attributes:
        process: What a process has without a model.
        weights: As they are held, gathered parts left out.
        optimizer: Adam's states and float32 copies of bfloat16 weights.
        logits: And what is made of them.
        buffers: Gathered weights of ZeRO-3, buckets of gradients and of publication.
        kv_cache: Of an engine.
        host: Memory of the node beside the GPU's: what is offloaded.
    """

    process: int = 0
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    kv_cache: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0
    host: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Every part on the device, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "host"}

    @property
    def passing(self) -> int:
        """What exists during a pass only."""
        return self.activations + self.logits + self.buffers

    @property
    def resident(self) -> int:
        """What stays between passes."""
        return self.total - self.passing

    @property
    def total(self) -> int:
        """The most that is there at a time."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The parameters that get a gradient: how many, and bytes of each."""

    num: int
    bytes_each: int


def dtype_bytes(dtype: str, *, on_gpu: bool) -> int:
    """Bytes of a number; `auto` is bfloat16 on a GPU and float32 on the CPU."""
    return 2 if dtype == "bfloat16" or (dtype == "auto" and on_gpu) else 4


def model_memory(work: ModelWork) -> Memory:
    """One rank of a role with a model."""
    on_gpu = bool(work.group.gpus_per_rank)
    states = _states(work, on_gpu)
    activations = _activations(work, on_gpu)
    logits = _logits(work, on_gpu)
    step = _step_bytes(work, on_gpu) - activations - logits
    if on_gpu:
        process = GPU_CONTEXT_BYTES
        bucket = 0
    else:
        process = LEARNER_BYTES if work.trains else MODEL_RANK_BYTES
        # A published bucket stays mapped in the object store's shared memory.
        bucket = min(work.publishes_mb * MIB, states.weights)
    return Memory(
        process=process,
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=activations,
        logits=logits,
        # Passes and the optimiser's step take turns: only what exceeds a pass counts.
        buffers=max(states.buffers, step, 0) + bucket,
        host=states.host,
    )


def trained_parameters(work: ModelWork, on_gpu: bool) -> Trained:
    """All of a model's, or those of its adapters and of a new head."""
    lora = work.model.lora
    if not work.trains:
        return Trained(num=0, bytes_each=4)
    if not lora.rank:
        return Trained(
            num=work.shape.num_parameters(work.head),
            bytes_each=dtype_bytes(work.model.dtype, on_gpu=on_gpu),
        )
    linears = work.shape.linears
    adapters = sum(lora.rank * (linear.inputs + linear.outputs) for linear in linears)
    head = 0 if work.head == "lm" else work.shape.num_head(work.head)
    # peft keeps adapters of bfloat16 models in float32.
    return Trained(num=adapters + head, bytes_each=4)


def zero_stage(work: ModelWork, trained: Trained) -> int:
    """As it runs: a frozen model is spread by stage 3 alone, bfloat16 training needs stage 1."""
    if not work.trains:
        return 3 if work.zero.stage == 3 else 0
    return work.zero.stage or int(trained.bytes_each == 2)


def _states(work: ModelWork, on_gpu: bool) -> Memory:
    trained = trained_parameters(work, on_gpu)
    stage, ranks = zero_stage(work, trained), work.group.ranks
    weights = _weight_bytes(work, trained, on_gpu)
    if stage == 3:
        weights //= ranks
    offloads = stage > 0 and _leaves(work.zero.offload_optimizer, on_gpu)
    # Adam's two, and above stage 0 the float32 copy that it steps on.
    optimizer = trained.num * (12 if stage else 8) // (ranks if stage else 1)
    gradients, on_host = _gradient_bytes(trained, stage, ranks, offloads)
    host = optimizer + on_host if offloads and work.zero.offload_optimizer == "cpu" else 0
    if _leaves(work.zero.offload_param, on_gpu):
        host += weights if work.zero.offload_param == "cpu" else 0
        weights = 0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=0 if offloads else optimizer,
        buffers=_zero_buffers(work, trained, stage, on_gpu),
        host=host,
    )


def _leaves(target: str, on_gpu: bool) -> bool:
    """Whether offloading there takes memory from the device: the CPU's own is where it is."""
    return target == "nvme" or (target == "cpu" and on_gpu)


def _weight_bytes(work: ModelWork, trained: Trained, on_gpu: bool) -> int:
    num = work.shape.num_parameters(work.head)
    adapters = trained.num * trained.bytes_each if work.model.lora.rank else 0
    if work.model.quantization == "none":
        return num * dtype_bytes(work.model.dtype, on_gpu=on_gpu) + adapters
    quantized = sum(linear.num_weights for linear in work.shape.linears)
    # peft makes everything else float32 in a quantized model that trains.
    each = 4 if work.trains else dtype_bytes(work.model.dtype, on_gpu=on_gpu)
    small = int(quantized * QUANTIZED_BYTES[work.model.quantization])
    return small + (num - quantized) * each + adapters


def _gradient_bytes(trained: Trained, stage: int, ranks: int, offloads: bool) -> tuple[int, int]:
    """On the device and, offloaded, on the host."""
    whole = trained.num * trained.bytes_each
    summed = 4 * trained.num // ranks
    match stage:
        case 0:
            return whole, 0
        case 1 if trained.bytes_each == 2:
            # Each pass's own, and their sum in float32, both whole.
            return whole + 4 * trained.num, 4 * trained.num // ranks if offloads else 0
        case 1:
            return whole + (0 if offloads else summed), summed if offloads else 0
        case 2:
            passed = whole // ranks
            return (passed, summed) if offloads else (passed + summed, 0)
    return (0, summed) if offloads else (summed, 0)


def _zero_buffers(work: ModelWork, trained: Trained, stage: int, on_gpu: bool) -> int:
    extra = work.zero.extra.get("zero_optimization", {})
    bucket = int(extra.get("reduce_bucket_size", REDUCE_BUCKET))
    if not on_gpu:  # pages that are never written take no memory
        bucket = min(bucket, trained.num)
    reduced = bucket * trained.bytes_each if stage >= 2 and trained.num else 0
    if stage < 3:
        return reduced
    live = int(extra.get("stage3_max_live_parameters", MAX_LIVE_PARAMETERS))
    num = work.shape.num_parameters(work.head)
    # However small the limit: the embedding, or a layer, is gathered whole.
    largest = max(work.shape.num_embedding, *(x.num_parameters for x in work.shape.layers))
    gathered = min(num, max(live, largest))
    return reduced + gathered * dtype_bytes(work.model.dtype, on_gpu=on_gpu)


def _step_bytes(work: ModelWork, on_gpu: bool) -> int:
    """What the optimiser's step makes for itself, when activations are gone."""
    trained = trained_parameters(work, on_gpu)
    stage = zero_stage(work, trained)
    if stage == 0:  # gradients are flattened to be reduced
        return min(trained.num, REDUCE_BUCKET) * trained.bytes_each
    if _leaves(work.zero.offload_optimizer, on_gpu):
        return 0
    return 4 * trained.num // work.group.ranks


def _logits(work: ModelWork, on_gpu: bool) -> int:
    each = 4 * LOGITS_COPIES if work.trains else 4 * (LOGITS_COPIES - 1)
    if dtype_bytes(work.model.dtype, on_gpu=on_gpu) == 2:
        each += 4
    block = work.logits_tokens * work.shape.vocabulary * 4
    factor = 1.0 if on_gpu else _heap_factor(block)
    return int(factor * work.logits_tokens * work.shape.vocabulary * each)


def _activations(work: ModelWork, on_gpu: bool) -> int:
    shape, tokens = work.shape, work.pass_tokens
    each = dtype_bytes(work.model.dtype, on_gpu=on_gpu)

    def held(width: int, num_bytes: int = each) -> float:
        block = tokens * width * num_bytes
        return block * (1.0 if on_gpu else _heap_factor(block))

    if not work.trains:
        return int(_inference(shape, held))
    adapted = shape.layers[0].linears if work.model.lora.rank and each == 2 else ()
    layer = _layer(shape, adapted, held, each)
    kept = held(shape.hidden) if work.model.gradient_checkpointing else layer
    # One layer is whole while it is computed again; the last norm and the head's input remain.
    recomputed = layer if work.model.gradient_checkpointing else 0.0
    return int(len(shape.layers) * kept + recomputed + 4 * held(shape.hidden))


def _layer(shape: ModelShape, adapted: tuple[Linear, ...], held: Held, each: int) -> float:
    """What one layer saves for its backward pass."""
    hidden, query = shape.hidden, shape.num_heads * shape.head_dim
    key = shape.num_kv_heads * shape.head_dim
    # A norm keeps its input, in float32, what it is scaled from, and the product's input.
    norm = held(hidden, 4) + 2 * held(hidden)
    # Queries, keys and values as attention takes them; its result, before and after packing.
    attention = 3 * held(query) + 2 * held(key)
    # A gated product keeps both factors, the one before its activation, and the result.
    inner = (4 if shape.is_gated else 3) * held(shape.ffn)
    # An adapter casts its input to its own float32.
    casts = sum(held(linear.inputs, 4) for linear in adapted)
    return 2 * norm + attention + inner + casts


def _inference(shape: ModelShape, held: Held) -> float:
    """The most that is alive at a time where nothing is saved: in attention, or in the MLP."""
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    # As projected, turned by position, laid into a rectangle; the result, and that packed.
    attention = 5 * held(query) + 5 * held(key)
    return max(attention, 3 * held(shape.ffn)) + 4 * held(shape.hidden)


def _heap_factor(block: int) -> float:
    return 1.0 if block >= RETURNED_BLOCK_BYTES else HEAP_FACTOR
