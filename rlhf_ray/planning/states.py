"""Weights, gradients and optimiser states: what DeepSpeed keeps of them at each ZeRO stage.

Sources: https://arxiv.org/abs/1910.02054, section 3, and the code of DeepSpeed 0.19.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.planning.heap import heap_factor
from rlhf_ray.planning.work import ModelWork

# DeepSpeed's defaults, in weights: what it reduces at a time; under ZeRO-3 what it keeps gathered,
# and gathers at a time.
REDUCE_BUCKET, MAX_LIVE_PARAMETERS, PREFETCH_BUCKET = 500_000_000, 1_000_000_000, 50_000_000
# 4-bit weights with double-quantized scales: https://arxiv.org/abs/2305.14314, section 3.
QUANTIZED_BYTES = {"4bit": 0.516, "8bit": 1.0}


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of one rank.

    Attributes:
        reduced: Gradients on their way.
        sent: Their copies in float32 while ranks exchange them, where they are bfloat16.
        gathered: Weights of ZeRO-3, whole for a pass.
        host: What is offloaded to the memory of the node.
    """

    weights: int
    gradients: int
    optimizer: int
    reduced: int
    sent: int
    gathered: int
    host: int


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The parameters that get a gradient.

    Attributes:
        factor: Of the heap, over all of them one by one.
        flat_factor: Of the heap, where one rank's share of them is laid end to end.
    """

    num: int
    bytes_each: int
    factor: float
    flat_factor: float


def states_of(work: ModelWork) -> States:
    """What stays between passes, and what ZeRO gathers for one."""
    trained = _trained(work)
    stage, ranks = _stage(work, trained), work.group.ranks
    weights = _weight_bytes(work, trained)
    if stage == 3:
        weights //= ranks
    optimizer = _optimizer_bytes(work, trained, stage)
    offloads = stage > 0 and _leaves(work, work.zero.offload_optimizer)
    gradients, on_host = _gradient_bytes(trained, stage, ranks, offloads)
    if work.use == "publish":
        gradients, on_host = _untouched_gradient_bytes(trained, stage, ranks, offloads)
    host = optimizer + on_host if offloads and work.zero.offload_optimizer == "cpu" else 0
    if _leaves(work, work.zero.offload_param):
        host += weights if work.zero.offload_param == "cpu" else 0
        weights = 0
    reduced = _reduced_bytes(work, trained, stage)
    return States(
        weights=weights,
        gradients=gradients,
        optimizer=0 if offloads else optimizer,
        reduced=reduced,
        sent=2 * reduced if work.trains and trained.bytes_each == 2 else 0,
        gathered=_gathered_bytes(work, stage),
        host=host,
    )


def step_bytes(work: ModelWork) -> int:
    """What an optimiser's step makes for itself, when activations are gone."""
    trained = _trained(work)
    stage = _stage(work, trained)
    if not work.trains:
        return 0
    if stage == 0:  # gradients are flattened to be reduced
        return min(trained.num, REDUCE_BUCKET) * trained.bytes_each
    if _leaves(work, work.zero.offload_optimizer):
        return 0
    flat = _flat_bytes(trained, 4, work.group.ranks)
    if work.on_gpu:
        return flat
    # Not fused, Adam makes two tensors as large as the one that it steps on, which with ZeRO is all
    # there is; below stage 3 each pass's own gradients have left by then.
    return 2 * flat if stage == 3 else flat


def _trained(work: ModelWork) -> Trained:
    """All parameters of a model, or those of its adapters and of a new head."""
    shape, lora = work.shape, work.model.lora
    if work.use == "read":
        return Trained(num=0, bytes_each=4, factor=1.0, flat_factor=1.0)
    if lora.rank:
        adapted = shape.adapted(lora.target_modules)
        adapters = sum(lora.rank * (linear.inputs + linear.outputs) for linear in adapted)
        head = 0 if work.head == "lm" else shape.num_head(work.head)
        small = heap_factor(0, on_gpu=work.on_gpu, trains=True)
        num, bytes_each, factor = adapters + head, work.bytes_each, small
    else:
        num, bytes_each = shape.num_parameters(work.head), work.bytes_each
        factor = _mean_factor(work)
    flat = heap_factor(4 * num // work.group.ranks, on_gpu=work.on_gpu, trains=work.trains)
    return Trained(num=num, bytes_each=bytes_each, factor=factor, flat_factor=flat)


def _mean_factor(work: ModelWork) -> float:
    """The heap's, over all tensors of the model as they are made and freed one by one."""
    shape = work.shape

    def factor(num: int) -> float:
        return heap_factor(num * work.bytes_each, on_gpu=work.on_gpu, trains=work.trains)

    large = [shape.num_embedding, shape.num_head(work.head)]
    large += [linear.num_weights for linear in shape.linears]
    num = shape.num_parameters(work.head)
    rest = num - sum(large)
    return (rest * factor(0) + sum(tensor * factor(tensor) for tensor in large)) / num


def _stage(work: ModelWork, trained: Trained) -> int:
    """As it runs: a frozen model is spread by stage 3 alone, bfloat16 training needs stage 1."""
    if work.use == "read":
        return 3 if work.zero.stage == 3 else 0
    return work.zero.stage or int(trained.bytes_each == 2)


def _leaves(work: ModelWork, target: str) -> bool:
    """Whether offloading takes memory from the device: to the CPU's own it moves nothing."""
    return target == "nvme" or (target == "cpu" and work.on_gpu)


def _weight_bytes(work: ModelWork, trained: Trained) -> int:
    num = work.shape.num_parameters(work.head)
    adapters = trained.num * trained.bytes_each if work.model.lora.rank else 0
    if work.model.quantization == "none":
        return num * work.bytes_each + adapters
    quantized = sum(linear.num_weights for linear in work.shape.linears)
    small = int(quantized * QUANTIZED_BYTES[work.model.quantization])
    return small + (num - quantized) * work.bytes_each + adapters


def _optimizer_bytes(work: ModelWork, trained: Trained, stage: int) -> int:
    """Adam's two, which its first step makes; above stage 0 the float32 copy that it steps on.

    Made once and kept, they leave no holes in the heap.
    """
    copies = (1 if stage else 0) + (2 if work.trains else 0)
    return copies * 4 * trained.num // (work.group.ranks if stage else 1)


def _flat_bytes(trained: Trained, bytes_each: int, ranks: int) -> int:
    """Of one rank's share, laid end to end."""
    return int(trained.num * bytes_each // ranks * trained.flat_factor)


def _untouched_gradient_bytes(
    trained: Trained, stage: int, ranks: int, offloads: bool
) -> tuple[int, int]:
    """The room for sums of gradients that is taken before there is any: device and host."""
    if stage == 1 and trained.bytes_each == 2 and not offloads:
        return 4 * trained.num, 0
    if stage < 3:
        return 0, 0
    summed = _flat_bytes(trained, 4, ranks)
    return (0, summed) if offloads else (summed, 0)


def _gradient_bytes(trained: Trained, stage: int, ranks: int, offloads: bool) -> tuple[int, int]:
    """On the device and, offloaded, on the host."""
    whole = int(trained.num * trained.bytes_each * trained.factor)
    summed = _flat_bytes(trained, 4, ranks)
    match stage:
        case 0:
            return whole, 0
        case 1 if trained.bytes_each == 2:
            if offloads:  # each pass's own, and their sum in float32, both whole
                return whole + 4 * trained.num, summed
            return 4 * trained.num, 0  # the sum: what a pass adds to it is dropped as it comes
        case 1:
            return (whole, summed) if offloads else (whole + summed, 0)
        case 2:
            passed = _flat_bytes(trained, trained.bytes_each, ranks)
            return (passed, summed) if offloads else (passed + summed, 0)
    return (0, summed) if offloads else (summed, 0)


def _reduced_bytes(work: ModelWork, trained: Trained, stage: int) -> int:
    # Stage 2 makes its bucket in the first backward pass, stage 3 before.
    if not trained.num or not (stage == 3 or (stage == 2 and work.trains)):
        return 0
    bucket = int(_settings(work).get("reduce_bucket_size", REDUCE_BUCKET))
    if not work.on_gpu:  # pages that are never written take no memory
        bucket = min(bucket, trained.num)
    return int(bucket * trained.bytes_each * trained.flat_factor)


def _gathered_bytes(work: ModelWork, stage: int) -> int:
    if stage != 3 or (work.group.ranks == 1 and not _leaves(work, work.zero.offload_param)):
        return 0  # one rank has all of it where it is
    num, settings = work.shape.num_parameters(work.head), _settings(work)
    live = int(settings.get("stage3_max_live_parameters", MAX_LIVE_PARAMETERS))
    # However small the limit: the embedding, or a layer, is gathered whole.
    largest = max(work.shape.num_embedding, *(x.num_parameters for x in work.shape.layers))
    gathered = min(num, max(live, largest)) * work.bytes_each
    # What came in one piece is copied out of it, weight by weight.
    piece = min(num, int(settings.get("stage3_prefetch_bucket_size", PREFETCH_BUCKET)))
    return int(gathered * _mean_factor(work)) + piece * work.bytes_each


def _settings(work: ModelWork) -> Mapping[str, Any]:
    """What the configuration says to DeepSpeed itself."""
    extra: Mapping[str, Any] = work.zero.extra.get("zero_optimization", {})
    return extra
