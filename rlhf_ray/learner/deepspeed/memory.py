"""What a rank with a model takes: states by ZeRO stage, and passes by layer and token. No torch.

Sources: https://arxiv.org/abs/1910.02054, section 3, and what DeepSpeed 0.19 keeps at each stage;
for activations the tensors that transformers' layers save. On the CPU the same arithmetic times
factors that were measured (`benchmarks/planned_memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import Literal

from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.memory import GIB, MIB, Memory, dtype_bytes
from rlhf_ray.models.shape import Head, ModelShape

# A process' own share of a GPU: CUDA's context, cuBLAS' workspaces, kernels. Then NCCL's channels
# to the other ranks of its group.
GPU_CONTEXT_BYTES, NCCL_BYTES = 512 * MIB, 1 * GIB
# Resident on the CPU before a model is there, measured with torch 2.13, transformers 5.19 and
# DeepSpeed 0.19: with nothing to load, with a model, with one that is handed to DeepSpeed.
BARE_RANK_BYTES, MODEL_RANK_BYTES, LEARNER_BYTES = 325 * MIB, 530 * MIB, 560 * MIB
# DeepSpeed's defaults, in weights: what it reduces at a time; under ZeRO-3 what it keeps gathered,
# and gathers at a time.
REDUCE_BUCKET, MAX_LIVE_PARAMETERS, PREFETCH_BUCKET = 500_000_000, 1_000_000_000, 50_000_000
# 4-bit weights with double-quantized scales: https://arxiv.org/abs/2305.14314, section 3.
QUANTIZED_BYTES = {"4bit": 0.516, "8bit": 1.0}
# Of a logit: itself, in float32 the logarithm of its probability, and in training its probability
# and a gradient; in bfloat16 also the gradient that goes back. An upper bound: not all are there at
# a time.
LOGITS_BYTES = {("read", 4): 8, ("read", 2): 10, ("train", 4): 16, ("train", 2): 20}
# glibc's heap keeps the room of freed tensors, in which others leave holes: measured, the CPU holds
# so many times what is in use at a time of activations (and of gradients that are whole), and of
# logits.
CPU_FACTORS, CPU_LOGITS_FACTOR = {"read": 1.5, "train": 2.0}, 1.5

Pass = Literal["read", "train"]


@dataclass(frozen=True, kw_only=True)
class ModelRank:
    """One rank of a role with a model.

    Attributes:
        use: It learns; it is made ready to learn, but its weights are only passed on; or it is
            read alone.
        row_tokens: Most tokens of a row.
        read_rows: That all ranks together read at a time; `train_rows` in an optimiser step.
        alone_tokens: That each rank reads by itself.
        logits_share: Of a micro-batch's tokens, those that get logits.
        shares_prompts: Several sequences may begin with one prompt, which stands once.
        publishes_mb: Weights go to engines in buckets of about this size; 0 for not at all.
    """

    shape: ModelShape
    head: Head
    use: Literal["train", "publish", "read"]
    section: ForwardConfig
    group: GroupConfig
    row_tokens: int
    read_rows: int = 0
    train_rows: int = 0
    alone_tokens: float = 0
    logits_share: float = 1.0
    shares_prompts: bool = False
    publishes_mb: int = 0

    @property
    def ranks(self) -> int:
        """That the role has."""
        return self.group.ranks

    @property
    def on_gpu(self) -> bool:
        """Whether each has one."""
        return bool(self.group.gpus_per_rank)

    def tokens(self, kind: Pass) -> int:
        """Of the largest micro-batch; 0 for none.

        Shorter rows fill it up to its budget; a longer one goes alone.
        """
        budget = max(self.section.max_tokens_per_micro_batch, self.row_tokens)
        rows = self.read_rows if kind == "read" else self.train_rows
        alone = self.alone_tokens if kind == "read" else 0
        return int(min(budget, max(ceil(rows / self.ranks) * self.row_tokens, alone)))

    @property
    def bytes_each(self) -> int:
        """Of a weight that is not quantized, and of an activation."""
        return dtype_bytes(self.section.model.dtype, on_gpu=self.on_gpu)

    @property
    def num_parameters(self) -> int:
        """Of the whole model with its head; adapters left out."""
        return self.shape.num_parameters(self.head)

    @property
    def num_trained(self) -> int:
        """Parameters that get a gradient: all, or those of adapters and of a new head."""
        lora = self.section.model.lora
        if self.use == "read" or not lora.rank:
            return 0 if self.use == "read" else self.num_parameters
        new_head = 0 if self.head == "lm" else self.shape.num_head(self.head)
        return self.shape.num_adapter(lora.rank, lora.target_modules) + new_head

    @property
    def stage(self) -> int:
        """As it runs: of a frozen model 3 or none; training in bfloat16 needs 1 at least."""
        if self.use == "read":
            return 3 if self.section.zero.stage == 3 else 0
        return self.section.zero.stage or int(self.bytes_each == 2)

    def offloads(self, what: Literal["offload_optimizer", "offload_param"]) -> bool:
        """Whether it leaves the device: to the CPU's own memory offloading moves nothing."""
        to = getattr(self.section.zero, what)
        return self.stage > 0 and (to == "nvme" or (to == "cpu" and self.on_gpu))

    def setting(self, name: str, default: int) -> int:
        """What the configuration says to DeepSpeed itself, in weights."""
        return int(self.section.zero.extra.get("zero_optimization", {}).get(name, default))


def resting_memory(rank: ModelRank) -> tuple[Memory, int]:
    """What stays on the device between passes, and what is offloaded to the node's memory."""
    num, each, ranks, stage = rank.num_trained, rank.bytes_each, rank.ranks, rank.stage
    own, summed, weights = num * each, _summed_bytes(rank), _weights_bytes(rank)
    offloads = rank.offloads("offload_optimizer")
    if rank.use == "publish":  # no pass has made any: there is the room that is taken before
        own, summed = 0, summed if stage == 3 else 0
    # A pass's own, and their sum in float32: at stage 1 in bfloat16 the sum alone, whole.
    first = own if rank.on_gpu else int(CPU_FACTORS["train"] * own)
    whole = 4 * num if each == 2 and (own or not offloads) else first + summed
    gradients = (first, whole, own // ranks + summed, summed)[stage]
    # Adam's two moments; above stage 0 the float32 copy that it steps on.
    copies = int(stage > 0) + 2 * int(rank.use == "train")
    optimizer = copies * 4 * num // (ranks if stage else 1)
    bucket, host = _reduced_bytes(rank), 0
    if offloads:
        host += optimizer + summed if rank.section.zero.offload_optimizer == "cpu" else 0
        # At stage 1 in bfloat16 a pass's own are then beside the sum.
        gradients += own if (stage, each) == (1, 2) else -summed
        optimizer = 0
    if rank.offloads("offload_param"):
        host += weights if rank.section.zero.offload_param == "cpu" else 0
        weights = 0
    memory = Memory(
        process=_process_bytes(rank),
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buckets=bucket,
    )
    return memory, host


def _process_bytes(rank: ModelRank) -> int:
    if rank.on_gpu:
        return GPU_CONTEXT_BYTES + (NCCL_BYTES if rank.ranks > 1 else 0)
    return MODEL_RANK_BYTES if rank.use == "read" else LEARNER_BYTES


def _weights_bytes(rank: ModelRank) -> int:
    """Quantized or not, with adapters; a share of them under ZeRO-3."""
    num = rank.num_parameters + (rank.num_trained if rank.section.model.lora.rank else 0)
    quantized = rank.shape.num_quantized if rank.section.model.quantization != "none" else 0
    size = quantized * QUANTIZED_BYTES.get(rank.section.model.quantization, 0)
    size += (num - quantized) * rank.bytes_each
    return int(size) // (rank.ranks if rank.stage == 3 else 1)


def _summed_bytes(rank: ModelRank) -> int:
    """A rank's share of the gradients that micro-batches add up to, in float32."""
    return 4 * rank.num_trained // rank.ranks


def _reduced_bytes(rank: ModelRank) -> int:
    """The bucket of gradients: stage 2 makes it in the first backward pass, stage 3 before."""
    if not (rank.num_trained and (rank.stage == 3 or (rank.stage == 2 and rank.use == "train"))):
        return 0
    bucket = rank.setting("reduce_bucket_size", REDUCE_BUCKET)
    # On the CPU pages that are never written take no memory.
    return (bucket if rank.on_gpu else min(bucket, rank.num_trained)) * rank.bytes_each


def reading_memory(rank: ModelRank, kept: Memory) -> Memory:
    """A pass without gradients, beside what is `kept`."""
    return _with_pass(rank, kept, "read", _gathered_bytes(rank))


def training_memory(rank: ModelRank, kept: Memory) -> Memory:
    """A pass that trains, or the optimiser's step after it: whatever takes more."""
    # Buckets of bfloat16 are exchanged as float32.
    sent = 2 * _reduced_bytes(rank) if rank.bytes_each == 2 else 0
    one = _with_pass(rank, kept, "train", _gathered_bytes(rank) + sent)
    # By then activations are gone; on the CPU the heap keeps their room.
    gone = one.logits + (one.activations if rank.on_gpu else 0)
    return replace(one, buffers=max(one.buffers, _step_bytes(rank) - gone))


def publishing_memory(rank: ModelRank, kept: Memory) -> Memory:
    """Weights on their way to the engines, and the probe that follows."""
    read = reading_memory(rank, kept)
    bucket = published_bytes(rank.publishes_mb, rank.shape, rank.bytes_each)
    # Through the hosts' memory one is packed while one is loaded.
    num_buckets = 1 if rank.on_gpu else 2
    return replace(read, buffers=read.buffers + num_buckets * bucket)


def published_bytes(bucket_mb: int, shape: ModelShape, bytes_each: int) -> int:
    """A published bucket, which holds at least the largest tensor."""
    return max(bucket_mb * MIB, shape.largest_tensor * bytes_each)


def _with_pass(rank: ModelRank, kept: Memory, kind: Pass, buffers: int) -> Memory:
    tokens = rank.tokens(kind)
    factor, logits_factor = (CPU_FACTORS[kind], CPU_LOGITS_FACTOR) if not rank.on_gpu else (1, 1)
    # All tokens of the probe get logits.
    share = 1.0 if kind == "read" and rank.publishes_mb else rank.logits_share
    scored = min(ceil(share * tokens), rank.section.chunk_tokens(rank.shape.vocabulary))
    logits = (
        (rank.head == "lm") * scored * rank.shape.vocabulary * LOGITS_BYTES[kind, rank.bytes_each]
    )
    return replace(
        kept,
        activations=int(factor * tokens * _activation_bytes(rank, kind))
        + _mask_bytes(rank, tokens),
        logits=int(logits_factor * logits),
        buffers=buffers,
    )


def _mask_bytes(rank: ModelRank, tokens: int) -> int:
    """Of `packed_sdpa` where prompts are shared: for each token a number for each key before it."""
    if not rank.shares_prompts or (rank.on_gpu and rank.bytes_each == 2):
        return 0
    return tokens * min(tokens, rank.row_tokens) * rank.bytes_each


def _activation_bytes(rank: ModelRank, kind: Pass) -> int:
    """Of one token through all layers: kept for the backward pass, or without one used at a time.

    Per layer: both norms keep their input in float32, that scaled, and their result; attention its
    queries, keys and values and its result, packed sequences of float32 also that before packing; a
    gated product both factors, the one before its activation, and the result; GELU's formula five.
    """
    shape, each = rank.shape, rank.bytes_each
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    outside = 4 * shape.hidden * each  # the last norm, and the head's input
    if kind == "read":
        return outside + max(5 * (query + key), 3 * shape.ffn) * each
    attention = (2 if each == 2 else 3) * query + 2 * key
    inner = (4 if shape.is_gated else 5) * shape.ffn
    layer = 2 * shape.hidden * (4 + 2 * each) + (attention + inner) * each
    if not rank.section.model.gradient_checkpointing:
        return outside + shape.num_layers * layer
    return outside + shape.num_layers * shape.hidden * each + layer


def _gathered_bytes(rank: ModelRank) -> int:
    """Weights of ZeRO-3 that are whole for a pass, and the piece in which the next ones come."""
    alone = rank.ranks == 1 and not rank.offloads("offload_param")
    if rank.stage != 3 or alone:  # one rank has all of it where it is
        return 0
    live = rank.setting("stage3_max_live_parameters", MAX_LIVE_PARAMETERS)
    live = max(live, rank.shape.largest_tensor)  # which is gathered whole
    piece = rank.setting("stage3_prefetch_bucket_size", PREFETCH_BUCKET)
    num = rank.num_parameters
    return (min(num, live) + min(num, piece)) * rank.bytes_each


def _step_bytes(rank: ModelRank) -> int:
    """What an optimiser's step makes for itself, when activations are gone."""
    if rank.stage == 0:  # gradients are flattened to be reduced
        return min(rank.num_trained, REDUCE_BUCKET) * rank.bytes_each
    if rank.offloads("offload_optimizer"):
        return 0
    # Measured on the CPU, with an Adam that made two tensors as large as the one it steps on.
    return (1 if rank.on_gpu else 2) * _summed_bytes(rank)
