"""What each role has to hold and to pass at a time, and the arithmetic of batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_ray.config.base import ForwardConfig, GroupConfig, JobConfig, ModelConfig, ZeroConfig
from rlhf_ray.config.online import OnlineConfig, RewardModelConfig, RolloutConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SupervisedConfig
from rlhf_ray.planning.model_shape import Head, ModelShape

# Where neither configuration nor model says how long a sequence may be.
DEFAULT_CONTEXT = 4096
# Shapes by the path that a configuration names.
Shapes = Mapping[str, ModelShape]


@dataclass(frozen=True, kw_only=True)
class ModelWork:
    """A rank group with a model.

    Attributes:
        section: Where the configuration describes it: `policy`, `reward.model`.
        pass_tokens: Of the largest micro-batch.
        logits_tokens: Rows of logits that exist at a time; 0 without a vocabulary product.
        publishes_mb: Weights go to the engines in buckets of about this size; 0 for not at all.
    """

    role: str
    section: str
    group: GroupConfig
    shape: ModelShape
    model: ModelConfig
    zero: ZeroConfig
    head: Head
    trains: bool
    pass_tokens: int
    logits_tokens: int
    publishes_mb: int = 0

    @property
    def on_gpu(self) -> bool:
        """Whether its ranks have GPUs."""
        return bool(self.group.gpus_per_rank)

    @property
    def bytes_each(self) -> int:
        """Of a weight that is not quantized, and of an activation."""
        return dtype_bytes(self.model.dtype, on_gpu=self.on_gpu)


@dataclass(frozen=True, kw_only=True)
class EngineWork:
    """Rollout engines.

    Attributes:
        max_model_len: Prompt and response tokens together.
        sleeps: Whether they give their GPUs to other roles between rollouts.
        bucket_mb: Weights come in buckets of about this size.
    """

    group: GroupConfig
    shape: ModelShape
    rollout: RolloutConfig
    max_model_len: int
    sleeps: bool
    bucket_mb: int

    role = section = "rollout"


@dataclass(frozen=True, kw_only=True)
class BareWork:
    """A rank group without a model: reward functions, or a remote scorer."""

    role: str
    section: str
    group: GroupConfig


Work = ModelWork | EngineWork | BareWork


@dataclass(frozen=True, kw_only=True)
class Batches:
    """One step of the job, at the longest that rows may be.

    Attributes:
        rows: Of one step: rollouts, or rows of the data set.
        row_tokens: Most tokens of a row, all its answers together.
        optimizer_steps: Of the trained role in one step.
        rows_per_optimizer_step: On all ranks.
        micro_batches: Of one rank in one optimiser step.
        rows_per_micro_batch: That fit the token budget.
    """

    rows: int
    row_tokens: int
    optimizer_steps: int
    rows_per_optimizer_step: int
    micro_batches: int
    rows_per_micro_batch: int

    @property
    def tokens(self) -> int:
        """Most tokens of one step."""
        return self.rows * self.row_tokens


def dtype_bytes(dtype: str, *, on_gpu: bool) -> int:
    """Bytes of a number; `auto` is bfloat16 on a GPU and float32 on the CPU."""
    return 2 if dtype == "bfloat16" or (dtype == "auto" and on_gpu) else 4


def model_paths(config: JobConfig) -> dict[str, str]:
    """The models that a job loads: path by the key that names it."""
    match config:
        case OnlineConfig():
            paths = {"policy.model.path": config.policy.model.path}
            if config.uses_reference:
                paths["reference.model.path"] = config.reference.model.path
            if config.uses_value:
                paths["value.model.path"] = config.value.model.path
            paths["reward.model.path"] = config.reward.model.path
        case SupervisedConfig():
            paths = {f"{config.trained_role}.model.path": config.learner.model.path}
            if isinstance(config, DpoConfig) and config.uses_reference_role:
                paths["reference.model.path"] = config.reference.model.path
        case _:
            raise TypeError(f"no job to plan: {type(config).__name__}")
    return {key: path for key, path in paths.items() if path}


def work_of(config: JobConfig, shapes: Shapes) -> tuple[list[Work], Batches]:
    """Every role of a job, and one step of it."""
    if isinstance(config, OnlineConfig):
        return _online(config, shapes)
    assert isinstance(config, SupervisedConfig)
    return _supervised(config, shapes)


def _online(config: OnlineConfig, shapes: Shapes) -> tuple[list[Work], Batches]:
    rollout, policy = config.rollout, config.policy
    shape = shapes[policy.model.path]
    context = rollout.max_model_len or shape.context_tokens or DEFAULT_CONTEXT
    prompt = config.data.prompt_tokens or config.data.max_prompt_tokens or context
    row_tokens = min(context, prompt + rollout.max_new_tokens)
    rows = config.prompts_per_step * config.samples_per_prompt
    batches = _batches(
        rows=rows,
        row_tokens=row_tokens,
        minibatches=config.algorithm.minibatches,
        epochs=config.algorithm.epochs,
        ranks=config.placement.policy.ranks,
        budget=policy.max_tokens_per_micro_batch,
    )
    groups = config.groups

    def model(role: str, head: Head, forward: ForwardConfig, trains: bool) -> ModelWork:
        model = forward.model.or_from(policy.model)
        step_rows = batches.rows_per_optimizer_step if trains else rows
        return _model_work(
            role,
            groups[role],
            shapes[model.path],
            forward.model_copy(update={"model": model}),
            head=head,
            trains=trains,
            rows=step_rows,
            row_tokens=row_tokens,
            scored_share=min(1.0, rollout.max_new_tokens / row_tokens),
            publishes_mb=config.publication.bucket_mb if role == "policy" else 0,
        )

    work: list[Work] = [
        model("policy", "lm", policy, True),
        EngineWork(
            group=groups["rollout"],
            shape=shape,
            rollout=rollout,
            max_model_len=context,
            sleeps=config.engines_sleep,
            bucket_mb=config.publication.bucket_mb,
        ),
        _scorer(groups["reward"], config.reward.model, shapes, row_tokens),
    ]
    if config.uses_reference:
        work.append(model("reference", "lm", config.reference, False))
    if config.uses_value:
        work.append(model("value", "value", config.value, True))
    return work, batches


def _scorer(group: GroupConfig, config: RewardModelConfig, shapes: Shapes, row_tokens: int) -> Work:
    if not config.path:
        return BareWork(role="reward", section="reward", group=group)
    longest = min(row_tokens, config.max_length or row_tokens)
    budget = config.max_tokens_per_micro_batch
    return ModelWork(
        role="reward",
        section="reward.model",
        group=group,
        shape=shapes[config.path],
        model=ModelConfig(path=config.path, dtype=config.dtype),
        zero=ZeroConfig(),
        head="score",
        trains=False,
        pass_tokens=max(1, budget // longest) * longest,
        logits_tokens=0,
    )


def _supervised(config: SupervisedConfig, shapes: Shapes) -> tuple[list[Work], Batches]:
    learner, role = config.learner, config.trained_role
    shape = shapes[learner.model.path]
    answers = 2 if isinstance(config, RmConfig) or _compares(config) else 1
    row_tokens = answers * (config.max_length or shape.context_tokens or DEFAULT_CONTEXT)
    batches = _batches(
        rows=config.batch_size,
        row_tokens=row_tokens,
        minibatches=1,
        epochs=1,
        ranks=config.num_ranks,
        budget=learner.max_tokens_per_micro_batch,
    )
    rows = {"rows": config.batch_size, "row_tokens": row_tokens}
    head: Head = "score" if isinstance(config, RmConfig) else "lm"
    trained = _model_work(role, config.groups[role], shape, learner, head=head, trains=True, **rows)
    if not isinstance(config, DpoConfig) or not config.uses_reference_role:
        return [trained], batches
    model = config.reference.model.or_from(learner.model)
    reference = _model_work(
        "reference",
        config.groups["reference"],
        shapes[model.path],
        config.reference.model_copy(update={"model": model}),
        head="lm",
        trains=False,
        **rows,
    )
    return [trained, reference], batches


def _compares(config: SupervisedConfig) -> bool:
    return isinstance(config, DpoConfig) and "kto" not in config.loss_type


def _batches(
    *, rows: int, row_tokens: int, minibatches: int, epochs: int, ranks: int, budget: int
) -> Batches:
    per_step = math.ceil(rows / minibatches)
    per_micro_batch = max(1, budget // row_tokens)
    return Batches(
        rows=rows,
        row_tokens=row_tokens,
        optimizer_steps=minibatches * epochs,
        rows_per_optimizer_step=per_step,
        micro_batches=math.ceil(math.ceil(per_step / ranks) / per_micro_batch),
        rows_per_micro_batch=per_micro_batch,
    )


def _model_work(
    role: str,
    group: GroupConfig,
    shape: ModelShape,
    forward: ForwardConfig,
    *,
    head: Head,
    trains: bool,
    rows: int,
    row_tokens: int,
    scored_share: float = 1.0,
    publishes_mb: int = 0,
) -> ModelWork:
    # Shorter rows fill a micro-batch up to its budget; a longer one goes alone.
    budget = max(forward.max_tokens_per_micro_batch, row_tokens)
    pass_tokens = min(budget, math.ceil(rows / group.ranks) * row_tokens)
    scored = math.ceil(scored_share * pass_tokens) if head == "lm" else 0
    return ModelWork(
        role=role,
        section=role,
        group=group,
        shape=shape,
        model=forward.model,
        zero=forward.zero,
        head=head,
        trains=trains,
        pass_tokens=pass_tokens,
        logits_tokens=min(scored, forward.logits_chunk_tokens),
        publishes_mb=publishes_mb,
    )
