"""Memory of one rank by part, on a GPU or as a process on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rlhf_ray.planning import passes, states
from rlhf_ray.planning.work import ModelWork

MIB, GIB = 2**20, 2**30

# A process' own share of a GPU: CUDA's context, cuBLAS workspaces, loaded kernels.
GPU_CONTEXT_BYTES = 512 * MIB
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
    def resident(self) -> int:
        """What stays between passes."""
        return self.total - self.activations - self.logits - self.buffers + self.kept_buffers

    @property
    def total(self) -> int:
        """The most that is there at a time."""
        return sum(self.parts.values())


def publication_bytes(work: ModelWork) -> int:
    """What publishing takes of a GPU while its engine is awake.

    A bucket on both sides, at least as large as any weight, and a layer's experts once more, as
    their family's checkpoints have them one by one; then a pass over the probe, for which ZeRO-3
    gathers.
    """
    if work.probe is None or not work.on_gpu:
        return 0
    bucket = max(work.publishes_mb * MIB, work.shape.num_embedding * work.bytes_each)
    probe = passes.activation_bytes(work, work.probe) + passes.logits_bytes(work, work.probe)
    experts = work.shape.num_fused * work.bytes_each
    return 2 * bucket + max(experts, probe) + states.states_of(work).gathered


def model_memory(work: ModelWork) -> Memory:
    """One rank of a role with a model."""
    on_gpu = bool(work.group.gpus_per_rank)
    kept = states.states_of(work)
    largest = passes.largest_pass(work)
    # Passes and the optimiser's step take turns, so that only what exceeds a pass counts.
    step = states.step_bytes(work) - passes.returned_bytes(work, largest)
    process = MODEL_RANK_BYTES if work.use == "read" else LEARNER_BYTES
    # A published bucket stays mapped in the object store's shared memory.
    bucket = 0 if on_gpu else min(work.publishes_mb * MIB, kept.weights)
    return Memory(
        process=GPU_CONTEXT_BYTES if on_gpu else process,
        weights=kept.weights,
        gradients=kept.gradients,
        optimizer=kept.optimizer,
        activations=passes.activation_bytes(work, largest),
        logits=passes.logits_bytes(work, largest),
        buffers=kept.reduced + max(kept.gathered + kept.sent, step) + bucket,
        kept_buffers=kept.reduced + bucket,
        host=kept.host,
    )
