"""The parts that jobs share: model, optimiser, ZeRO, placement, deadlines, logging."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
# In the context of a validation: the configuration is read here and runs on another machine.
ELSEWHERE = "elsewhere"


def _at_home(path: str, info: ValidationInfo) -> str:
    return path if (info.context or {}).get(ELSEWHERE) else os.path.expanduser(path)


# What names a file or folder: `~` is the home of whoever runs the job, on the machine that runs it.
LocalPath = Annotated[str, AfterValidator(_at_home)]
# Ray's label selectors: a value, several of them, or anything but those.
LabelSelector = Annotated[str, Field(pattern=r"^!?(in\([\w.-]+(, ?[\w.-]+)*\)|[\w.-]+)$")]

# Stands in the folder of every run, beside what the run wrote.
STATUS_FILE = "status.json"


class Config(BaseModel):
    """Frozen, and an unknown key is an error.

    A section that is given in part keeps the other defaults of the class that it stands in:
    `PpoConfig` with `algorithm: {epochs: 2}` still has PPO's advantage and KL.

    Attributes:
        alternatives: Keys of which one stands in place of the other: what is given later (a file, a
            pipeline's `set`, the command line) counts; together they are refused.
    """

    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        for fault in self._faults():
            raise ValueError(fault)
        return self

    def _faults(self) -> Iterator[str]:
        """What is wrong with the values beside each other; a mistake is told one by one."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _sections_keep_their_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        completed = dict(values)
        for name, field in cls.model_fields.items():
            if field.default_factory_takes_validated_data:
                continue  # it follows from other keys, and is no section
            default = field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel) and isinstance(values.get(name), Mapping):
                completed[name] = laid_over(default.model_dump(exclude_unset=True), values[name])
        return completed


def laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` where it has a value, else `below`, mapping by mapping."""
    merged = {**below, **above}
    for name in below.keys() & above.keys():
        if isinstance(below[name], Mapping) and isinstance(above[name], Mapping):
            merged[name] = laid_over(below[name], above[name])
    return merged


CHAT_TEMPLATE_NAMES = ("alpaca", "chatml", "llama3", "mistral", "vicuna", "zephyr")


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685); `rank: 0` trains all weights."""

    rank: NonNegativeInt = 0
    alpha: PositiveFloat = 16.0
    dropout: Share = 0.0
    target_modules: list[str] | Literal["all-linear"] = "all-linear"


class ModelSource(Config):
    """What every model of a job is named by."""

    path: LocalPath = ""
    tokenizer: LocalPath = ""
    chat_template: LocalPath = ""


class ModelConfig(ModelSource):
    """Where a model comes from and how it is held.

    Attributes:
        path: Folder in the transformers layout, or a hub name. Empty in a role that takes the
            policy's.
        tokenizer: Folder or hub name of the tokenizer; empty for the model's own.
        chat_template: A name (`CHAT_TEMPLATE_NAMES`), Jinja text or a file's path; empty for the
            tokenizer's own.
        dtype: Of the weights in forward and backward passes; `auto` is bfloat16 on GPU, float32 on
            CPU.
        attention: `auto` is `varlen_attn`, PyTorch's own FlashAttention kernel, in bfloat16 on a
            GPU of compute capability 8.0 or above; there `packed_sdpa` for a model that it does not
            suit, and everywhere else. `flash_attention_2` needs the package flash-attn. Two equal
            updates are bit-equal with `packed_sdpa` on a CPU alone.
        quantization: Base weights in 4 or 8 bit through bitsandbytes; needs `lora.rank` above 0.
        kernels: `liger` takes norms and gated products of the package liger-kernel, on a GPU.
    """

    revision: str = "main"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    attention: Literal["auto", "varlen_attn", "packed_sdpa", "flash_attention_2"] = "auto"
    gradient_checkpointing: bool = False
    quantization: Literal["none", "4bit", "8bit"] = "none"
    kernels: Literal["torch", "liger"] = "torch"
    trust_remote_code: bool = False
    lora: LoraConfig = LoraConfig()

    def or_from(self, other: ModelConfig) -> ModelConfig:
        """This model; where it names none, the one that `other` starts from."""
        if self.path:
            return self
        start = {
            "path": other.path,
            "revision": other.revision,
            "trust_remote_code": other.trust_remote_code,
        }
        return self.model_copy(update=start)


class OptimConfig(Config):
    """AdamW (arXiv 1711.05101) and its schedule; all counts are optimiser steps.

    Attributes:
        weight_decay: Of matrices; biases and the weights of norms have none.
    """

    lr: PositiveFloat = 1e-6
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    min_lr_share: Share = 0.0


# What DeepSpeed's settings decide a gradient's value, and what to set instead. A learner's gradient
# is the sum over its micro-batches and ranks, in float32, clipped by the norm that is reported; in
# which buckets and with what overlap DeepSpeed gets there is open.
_ABSENT = object()
_TAKEN_SETTINGS = {
    "set model.dtype": "bf16 bfloat16 fp16 amp torch_autocast",
    "gradients are summed over micro-batches and ranks in float32": (
        "data_types communication_data_type prescale_gradients gradient_predivide_factor "
        "gradient_allreduce_op sparse_gradients managed_gradient_accumulation "
        "zero_optimization.zenflow zero_optimization.zero_quantized_gradients"
    ),
    "set max_tokens_per_micro_batch": (
        "gradient_accumulation_steps train_batch_size train_micro_batch_size_per_gpu"
    ),
    "set optim.max_grad_norm": "gradient_clipping",
    "set optim": "optimizer",
    "set optim.schedule": "scheduler",
    "set zero.stage": "zero_optimization.stage",
    "set zero.offload_optimizer": (
        "zero_optimization.cpu_offload zero_optimization.offload_optimizer.device"
    ),
    "set zero.nvme_path": (
        "zero_optimization.offload_optimizer.nvme_path zero_optimization.offload_param.nvme_path"
    ),
    "set zero.offload_param": "zero_optimization.offload_param.device",
    "the norm is always reported": "zero_optimization.compute_grad_norm",
}


def taken_settings(extra: Mapping[str, Any]) -> Iterator[str]:
    """What stands in `extra` and must not, each with what to do instead."""
    for instead, paths in _TAKEN_SETTINGS.items():
        for path in paths.split():
            value: Any = extra
            for key in path.split("."):
                value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
            if value is not _ABSENT:
                yield f"{path}: {instead}"


class ZeroConfig(Config):
    """DeepSpeed's ZeRO stage and offloading.

    Attributes:
        nvme_path: Folder on a drive of each node; every rank has one of its own below it.
        extra: Merged into DeepSpeed's own settings: sizes of buckets, overlap and the like. What
            decides a gradient's value has keys of its own, or is fixed.
    """

    stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    offload_param: Literal["none", "cpu", "nvme"] = "none"
    nvme_path: LocalPath = ""
    extra: dict[str, Any] = {}

    def _faults(self) -> Iterator[str]:
        if self.offload_param != "none" and self.stage != 3:
            yield f"offload_param needs stage 3, got stage {self.stage}"
        if self.offload_optimizer != "none" and self.stage == 0:
            yield "offload_optimizer needs stage 1, 2 or 3, got stage 0"
        if self.offloads_to_nvme and self.stage != 3:
            # DeepSpeed's stages 1 and 2 take "nvme" and leave everything where it is.
            yield f"offloading to nvme needs stage 3, got stage {self.stage}"
        if self.offloads_to_nvme and not self.nvme_path:
            yield "offloading to nvme needs nvme_path, a folder on the drive"
        for problem in taken_settings(self.extra):
            yield f"extra must not set DeepSpeed's {problem}"

    @property
    def offloads_to_nvme(self) -> bool:
        """Whether anything lies on a drive."""
        return "nvme" in (self.offload_optimizer, self.offload_param)


# 256 MiB in float32. A chunk's gradient of the head is as large as the head, and is added to the
# others': fewer rows at a time would take longer.
LOGITS_AT_A_TIME = 2**26


class ForwardConfig(Config):
    """A role that runs a model over rollouts.

    Attributes:
        max_tokens_per_micro_batch: Budget of one pass on one rank; a longer single sequence still
            goes alone. A prompt that is shared counts once, and a sixth of the tokens of the
            sequences that share it for copies of its keys.
        layout: `packed` lays sequences end to end; `padded` makes a rectangle. Same numbers, and
            packed needs less memory; models with other layers than attention need `padded`. `auto`
            is packed where the loaded model shows that it keeps sequences apart, else padded.
        share_prompts: A prompt that several sequences of a packed pass begin with (samples of a
            group, answers of a pair or a ranking) is computed once, forward and backward: the same
            numbers to rounding. Off in padded layouts, for models that show at loading that they
            cannot, and with `model.lora.dropout`, which is to be drawn anew for each answer.
        logits_chunk_tokens: Logits exist for at most this many tokens at a time. `auto` has 256 MiB
            of them in float32: 441 tokens of a vocabulary of 152k, all tokens of a small one.
    """

    model: ModelConfig = ModelConfig()
    zero: ZeroConfig = ZeroConfig()
    max_tokens_per_micro_batch: PositiveInt = 8192
    layout: Literal["auto", "packed", "padded"] = "auto"
    share_prompts: bool = True
    logits_chunk_tokens: PositiveInt | Literal["auto"] = "auto"

    def chunk_tokens(self, vocabulary: int) -> int:
        """How many tokens of a vocabulary have logits at a time."""
        if self.logits_chunk_tokens != "auto":
            return self.logits_chunk_tokens
        return max(1, LOGITS_AT_A_TIME // vocabulary)

    @property
    def padded(self) -> bool:
        """Whether micro-batches are rectangles."""
        return self.layout == "padded"

    @property
    def shares_prompts(self) -> bool:
        """Whether a prompt stands once in a pass, where the model can."""
        return self.share_prompts and not self.padded and not self.model.lora.dropout


class LearnerConfig(ForwardConfig):
    """A role that trains.

    Attributes:
        compile: Layers are compiled by `torch.compile` at their first pass, which takes a minute;
            not under ZeRO stage 3. For GPUs: it fuses what lies between the large products.
    """

    optim: OptimConfig = OptimConfig()
    compile: bool = False

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.compile and self.zero.stage == 3:
            yield "compile needs zero.stage below 3, whose hooks cannot be compiled"
        if self.model.quantization != "none" and self.model.lora.rank == 0:
            yield (
                f"model.quantization {self.model.quantization!r} needs model.lora.rank above 0: "
                "quantized weights cannot be trained"
            )


class ReferenceConfig(ForwardConfig):
    """The frozen model that KL is measured to; an empty `model.path` takes the policy's start."""

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if self.model.lora.rank:
            yield "a frozen reference has no adapter: model.lora.rank must be 0"


class GroupConfig(Config):
    """Where one role lives.

    Attributes:
        ranks: Processes of a rank group; for `rollout` the number of engines.
        gpus_per_rank: GPUs of one rank; for `rollout` of one engine, which is its tensor
            parallelism. 0 runs on the CPU.
        cpus_per_rank: CPU cores that a rank reserves, and its threads. `auto` reserves one: a rank
            on a GPU has one thread, ranks on CPUs have all cores of their node, by turns.
        share: Name of another role on whose GPUs this one lives; empty for GPUs of its own.
        strategy: Ray's placement strategy for the group's bundles.
        resources: Custom Ray resources that each rank asks for, to pin a role to certain nodes.
        labels: Labels of the nodes that ranks may go to, as `ray start --labels` gave them; a value
            may also be `!a`, `in(a, b)` or `!in(a, b)`.
    """

    ranks: PositiveInt = 1
    gpus_per_rank: NonNegativeInt = 0
    cpus_per_rank: PositiveFloat | Literal["auto"] = "auto"
    share: Literal["", "policy", "reference", "reward", "value", "rollout"] = ""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    resources: dict[str, PositiveFloat] = {}
    labels: dict[str, LabelSelector] = {}

    def _faults(self) -> Iterator[str]:
        if self.share and (self.resources or self.labels):
            yield (f"a role that shares with {self.share} takes its place: no resources or labels")

    @property
    def reserved_cpus(self) -> float:
        """Cores of one rank in Ray's books."""
        return 1.0 if self.cpus_per_rank == "auto" else self.cpus_per_rank

    def host_of(self, role: str) -> str:
        """On whose GPUs `role` lives, whose group this is: itself, or the one it shares with."""
        return self.share or role


class Placement(Config):
    """The groups of a job's roles: one field a role."""

    def _faults(self) -> Iterator[str]:
        groups: dict[str, GroupConfig] = dict(self)
        for role, group in groups.items():
            if role != "rollout" and group.gpus_per_rank > 1:
                yield (
                    f"{role}.gpus_per_rank must be 0 or 1, got {group.gpus_per_rank}: ask for more "
                    "ranks instead"
                )
            if not group.share:
                continue
            if group.share == role:
                yield f"{role}.share names itself"
            # The host may be another job's role, in a pipeline or a standing pool.
            if group.share in groups and groups[group.share].share:
                yield (
                    f"{role}.share must name a role with GPUs of its own, got {group.share!r}, "
                    f"which lives with {groups[group.share].share!r}"
                )


class CheckpointConfig(Config):
    """When to save; `every: 0` only at the end. Exports are in the transformers layout."""

    every: NonNegativeInt = 0
    keep: PositiveInt = 2
    export: Literal["end", "each", "never"] = "end"


class WandbConfig(Config):
    """Weights & Biases; the key is read from the environment, never from here."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "rlhf-ray"
    name: str = ""
    entity: str = ""
    tags: list[str] = []


class TimeoutConfig(Config):
    """Deadlines of every wait, in seconds.

    Attributes:
        heartbeat_s: How long the event loop of a run with `--restarts` may stand still; then it is
            taken to hang, killed and started again.
        stop_s: How long a run that is stopped may take to finish and save its step; then it ends as
            it is. Of a submitted job it is what Ray allows less 2 seconds, if that is less.
        health_s: Between two questions to every actor whether it is alive.
        hang_s: How long an actor may leave such a question open; then it is killed, and started
            again as one that died. A long import may keep it from answering for a while. And how
            long an engine may be behind another amid a publication through the hosts' memory.
    """

    place_s: PositiveFloat = 120.0
    start_s: PositiveFloat = 900.0
    call_s: PositiveFloat = 1800.0
    publish_s: PositiveFloat = 600.0
    reward_s: PositiveFloat = 600.0
    heartbeat_s: PositiveFloat = 300.0
    stop_s: NonNegativeFloat = 1800.0
    health_s: PositiveFloat = 5.0
    hang_s: PositiveFloat = 60.0


class ActorFailureConfig(Config):
    """How often the actors of a role that died are started again.

    Attributes:
        restarts: Of each role, before its next death ends the run; 0 ends the run at once. Of each
            engine by itself: the run goes on without it, and ends with the last one.
        backoff_s: Between a death and the second restart, and twice as long before each one after
            that; the first one comes at once.
        stable_s: After so long without a death a role has all of its restarts again.
    """

    restarts: NonNegativeInt = 5
    backoff_s: NonNegativeFloat = 5.0
    stable_s: PositiveFloat = 600.0


class RowFailureConfig(Config):
    """What becomes of a group at one of whose samples a user's code hangs, crashes or raises.

    Attributes:
        retries: Further tries of the group.
        then: `skip` leaves the group out: it has no score, is counted and recorded, and no resumed
            run tries it again. `stop` ends the run.
        most_skipped_share: Of the last 1,000 groups; of the first 100 as many as of 100. More end
            the run.
    """

    retries: NonNegativeInt = 2
    then: Literal["skip", "stop"] = "skip"
    most_skipped_share: Share = 0.02


class FailureConfig(Config):
    """What becomes of a run in which something fails."""

    actor: ActorFailureConfig = ActorFailureConfig()
    row: RowFailureConfig = RowFailureConfig()


class RayConfig(Config):
    """Where Ray runs.

    Attributes:
        address: Empty starts Ray on this machine; `auto` joins the cluster it belongs to.
        pool: A standing pool (`rlhf-ray pool up`) to attach to; empty for actors of one's own.
    """

    address: str = ""
    pool: str = ""
    num_cpus: NonNegativeInt = 0
    num_gpus: NonNegativeInt = 0
