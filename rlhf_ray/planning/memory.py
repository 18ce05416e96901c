"""Memory of one rank by part, on a GPU or as a process on the CPU."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from rlhf_ray.planning import passes, states
from rlhf_ray.planning.model_shape import ModelShape
from rlhf_ray.planning.work import ModelWork, Work

MIB, GIB = 2**20, 2**30

# A process' own share of a GPU: CUDA's context, cuBLAS workspaces, loaded kernels.
GPU_CONTEXT_BYTES = 512 * MIB
# Channels of NCCL to the other ranks of a group; they stay for as long as the group lives.
NCCL_BYTES = 1 * GIB
# Resident memory on the CPU before a model is there, measured with torch 2.13, transformers 5.19
# and DeepSpeed 0.19: a rank with nothing to load, one with a model, one that hands it to DeepSpeed.
BARE_RANK_BYTES, MODEL_RANK_BYTES, LEARNER_BYTES = 325 * MIB, 530 * MIB, 560 * MIB


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes by part.

    Attributes:
        process: What a process has without a model.
        weights: As they are held, gathered parts left out.
        optimizer: Adam's states and float32 copies of the weights.
        kv_cache: Of an engine.
        activations: From here on what exists during a pass only.
        logits: And what is made of them.
        buffers: Gathered weights of ZeRO-3, buckets of gradients and of publication.
        kept_buffers: How much of these stays between passes.
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
    kept_buffers: int = 0
    host: int = 0

    @property
    def parts(self) -> dict[str, int]:
        """Every part on the device, by name."""
        within = ("kept_buffers", "host")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in within}

    @property
    def at_rest(self) -> Memory:
        """What stays between passes."""
        return replace(self, activations=0, logits=0, buffers=self.kept_buffers)

    @property
    def loaded(self) -> Memory:
        """The process with its weights, without what training adds."""
        return Memory(process=self.process, weights=self.weights)

    @property
    def bare(self) -> Memory:
        """The process without its model."""
        return Memory(process=self.process)

    @property
    def total(self) -> int:
        """The most that is there at a time."""
        return sum(self.parts.values())


def largest(memories: Iterable[Memory]) -> Memory:
    """The one with the largest sum."""
    return max(memories, key=lambda memory: memory.total)


def process_bytes(work: Work) -> int:
    """What a rank's process takes of its GPU."""
    return GPU_CONTEXT_BYTES + (NCCL_BYTES if work.group.ranks > 1 else 0)


def model_memory(work: ModelWork) -> Memory:
    """One rank of a role with a model, which it keeps where it is."""
    kept = states.states_of(work)
    one = passes.largest_pass(work)
    # Passes and the optimiser's step take turns, so that only what exceeds a pass counts.
    step = states.step_bytes(work) - passes.returned_bytes(work, one)
    process = MODEL_RANK_BYTES if work.use == "read" else LEARNER_BYTES
    # A published bucket stays mapped in the object store's shared memory.
    bucket = 0 if work.on_gpu else min(work.publishes_mb * MIB, kept.weights)
    return Memory(
        process=process_bytes(work) if work.on_gpu else process,
        weights=kept.weights,
        gradients=kept.gradients,
        optimizer=kept.optimizer,
        activations=passes.activation_bytes(work, one),
        logits=passes.logits_bytes(work, one),
        buffers=kept.reduced + max(kept.gathered + kept.sent, step) + bucket,
        kept_buffers=kept.reduced + bucket,
        host=kept.host,
    )


def scoring_memory(work: ModelWork) -> Memory:
    """A pass without gradients, on a GPU to which weights alone have come."""
    assert work.reading is not None
    kept = states.states_of(work)
    return Memory(
        process=process_bytes(work),
        weights=kept.weights,
        activations=passes.activation_bytes(work, work.reading),
        logits=passes.logits_bytes(work, work.reading),
        buffers=kept.gathered,
    )


def updating_memory(work: ModelWork) -> Memory:
    """The optimiser's steps by themselves."""
    return model_memory(replace(work, reading=None, probe=None))


def publishing_memory(work: ModelWork, *, at_rest: Memory) -> Memory:
    """Weights on their way to the engines, beside what the rank holds of its GPU `at_rest`.

    A bucket, at least as large as any weight, and a layer's experts once more, as their family's
    checkpoints have them one by one; then a pass over the probe, for which ZeRO-3 gathers.
    """
    assert work.probe is not None
    probe = passes.activation_bytes(work, work.probe)
    logits = passes.logits_bytes(work, work.probe)
    experts = max(0, work.shape.num_fused * work.bytes_each - probe - logits)
    bucket = bucket_bytes(work.publishes_mb, work.shape, work.bytes_each)
    return replace(
        at_rest,
        activations=probe,
        logits=logits,
        buffers=at_rest.kept_buffers + bucket + experts + states.states_of(work).gathered,
    )


def bucket_bytes(bucket_mb: int, shape: ModelShape, bytes_each: int) -> int:
    """A published bucket, which holds at least the largest weight: the embedding."""
    return max(bucket_mb * MIB, shape.num_embedding * bytes_each)
