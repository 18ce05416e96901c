"""The roles of a job and what each needs, and its batches, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf_ray.config.jobs import AnyJob
from rlhf_ray.config.learners import ForwardConfig
from rlhf_ray.config.models import ModelConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.learner.deepspeed.memory import ModelRank
from rlhf_ray.models.shape import ModelShape
from rlhf_ray.planning.needs import Engine, RoleNeed, bare_need, engine_need, model_need
from rlhf_ray.shared_prompts import shared_cost

# Where neither configuration nor model says how long a sequence may be.
DEFAULT_CONTEXT = 4096
# Shapes by the path that a configuration names.
Shapes = Mapping[str, ModelShape]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """One step of a job, at the longest that rows may be.

    Attributes:
        rows: Of one step: rollouts, or rows of the data set.
        row_tokens: Most tokens of a row, all its answers together.
        optimizer_steps: Of the trained role in one step; 0 where nothing is trained.
        rows_per_optimizer_step: On all ranks.
        micro_batches: Of one rank in one optimiser step.
        rows_per_micro_batch: That fit the token budget.
    """

    rows: int
    row_tokens: int
    optimizer_steps: int = 0
    rows_per_optimizer_step: int = 0
    micro_batches: int = 0
    rows_per_micro_batch: int = 0

    @property
    def tokens(self) -> int:
        """Most tokens of one step."""
        return self.rows * self.row_tokens

    @classmethod
    def trained(
        cls, rows: int, row_tokens: int, *, minibatches: int, epochs: int, ranks: int, budget: int
    ) -> Batches:
        """Of so many minibatches and epochs, on the trained role's ranks."""
        per_step, per_micro_batch = math.ceil(rows / minibatches), max(1, budget // row_tokens)
        return cls(
            rows=rows,
            row_tokens=row_tokens,
            optimizer_steps=minibatches * epochs,
            rows_per_optimizer_step=per_step,
            micro_batches=math.ceil(math.ceil(per_step / ranks) / per_micro_batch),
            rows_per_micro_batch=per_micro_batch,
        )


def model_paths(config: AnyJob) -> dict[str, str]:
    """The models that a job loads: path by the key that names it."""
    models = config.models.items()
    return {f"{role}.model.path": model.path for role, model in models if model.path}


def roles_of(config: AnyJob, shapes: Shapes, gpu_bytes: int) -> tuple[list[RoleNeed], Batches]:
    """Every role of a job, on GPUs of so much memory, and one step of it."""
    if isinstance(config, OnlineConfig):
        return _online(config, shapes, gpu_bytes)
    return _supervised(config, shapes)


def _online(config: OnlineConfig, shapes: Shapes, gpu_bytes: int) -> tuple[list[RoleNeed], Batches]:
    shape, rollout = shapes[config.policy.model.path], config.rollout
    context = rollout.max_model_len or shape.context_tokens or DEFAULT_CONTEXT
    batches = _online_batches(config, context)
    engine = Engine(
        shape=shape,
        rollout=rollout,
        group=config.placement.rollout,
        max_model_len=context,
        sleeps=config.engines_sleep,
        bucket_mb=config.bucket_mb,
    )
    needs = [
        _online_model(config, "policy", shapes, batches),
        engine_need(engine, gpu_bytes),
        *_scorers(config, shapes, batches.row_tokens),
    ]
    if "environment" in config.groups:
        needs.append(bare_need("environment", config.groups["environment"], turn="generate"))
    others = [role for role in ("reference", "value") if role in config.groups]
    return [*needs, *(_online_model(config, role, shapes, batches) for role in others)], batches


def _online_batches(config: OnlineConfig, context: int) -> Batches:
    prompt = config.data.prompt_tokens or config.data.max_prompt_tokens or context
    rows = config.prompts_per_step * config.samples_per_prompt
    row_tokens = min(context, prompt + config.max_response_tokens)
    if not config.trains:
        return Batches(rows=rows, row_tokens=row_tokens)
    return Batches.trained(
        rows,
        row_tokens,
        minibatches=config.algorithm.minibatches,
        epochs=config.algorithm.epochs,
        ranks=config.placement.policy.ranks,
        budget=config.policy.max_tokens_per_micro_batch,
    )


def _online_model(config: OnlineConfig, role: str, shapes: Shapes, batches: Batches) -> RoleNeed:
    section = _started(getattr(config, role), config.policy.model)
    publishes = role == "policy"
    learns = config.trains and role in config.learners
    reads = role != "policy" or bool(config.scored_models)
    # Prompts of the probe, of which each rank scores all.
    prompt_tokens = max(1, batches.row_tokens - config.max_response_tokens)
    probe = config.publication.probe_sequences * prompt_tokens
    rank = ModelRank(
        shape=shapes[section.model.path],
        head="value" if role == "value" else "lm",
        use="train" if learns else "publish" if publishes else "read",
        section=section,
        group=config.groups[role],
        row_tokens=batches.row_tokens,
        read_rows=batches.rows if reads else 0,
        train_rows=batches.rows_per_optimizer_step,
        alone_tokens=probe if publishes else 0,
        logits_share=_scored_share(config, section, batches.row_tokens),
        shares_prompts=section.shares_prompts and config.samples_per_prompt > 1,
        publishes_mb=config.bucket_mb if publishes else 0,
    )
    return model_need(role, rank, offloads=role in config.on_engines_gpus)


def _scored_share(config: OnlineConfig, section: ForwardConfig, row_tokens: int) -> float:
    """Of the tokens that a micro-batch counts, the policy's own, as many as these may be."""
    num_new = min(row_tokens, config.rollout.max_new_tokens)
    num_behind = min(row_tokens, config.max_response_tokens)
    num_responses = config.samples_per_prompt if section.shares_prompts else 1
    tokens = shared_cost(row_tokens - num_behind, num_responses, num_responses * row_tokens)
    return num_responses * num_new / tokens


def _scorers(config: OnlineConfig, shapes: Shapes, row_tokens: int) -> Iterator[RoleNeed]:
    """The reward model, and the workers for all other scorers."""
    if config.reward.model.path:
        yield _reward_model(config, shapes, row_tokens)
    if config.reward.needs_workers:
        yield bare_need("reward_worker", config.placement.reward_worker)


def _reward_model(config: OnlineConfig, shapes: Shapes, row_tokens: int) -> RoleNeed:
    group, model = config.placement.reward, config.reward.model
    longest = min(row_tokens, model.max_length or row_tokens)
    rank = ModelRank(
        shape=shapes[model.path],
        head="score",
        use="read",
        section=ForwardConfig(model=ModelConfig(path=model.path, dtype=model.dtype)),
        group=group,
        row_tokens=max(1, model.max_tokens_per_micro_batch // longest) * longest,
        read_rows=1,
        shares_prompts=config.samples_per_prompt > 1,
    )
    return model_need("reward", rank, offloads="reward" in config.on_engines_gpus)


def _supervised(config: SupervisedConfig, shapes: Shapes) -> tuple[list[RoleNeed], Batches]:
    learner = config.learner
    length = config.max_length or shapes[learner.model.path].context_tokens or DEFAULT_CONTEXT
    batches = Batches.trained(
        config.batch_size,
        config.answers_per_row * length,
        minibatches=1,
        epochs=1,
        ranks=config.num_ranks,
        budget=learner.max_tokens_per_micro_batch,
    )
    ahead = config.scores_rows_ahead

    def need(role: str, section: ForwardConfig) -> RoleNeed:
        learns = role == config.trained_role
        # Rows that are only read, such as those that a reference scores ahead, fill micro-batches.
        many = config.reads_more_rows or (ahead and not learns)
        rank = ModelRank(
            shape=shapes[section.model.path],
            head="score" if config.model_kind == "classifier" else "lm",
            use="train" if learns else "read",
            section=section,
            group=config.groups[role],
            row_tokens=batches.row_tokens,
            read_rows=0 if learns else batches.rows,
            train_rows=batches.rows,
            alone_tokens=math.inf if many else 0,
            shares_prompts=section.shares_prompts and config.answers_per_row > 1,
        )
        return model_need(role, rank, leaves=ahead and not learns)

    sections = {role: getattr(config, role) for role in config.models}
    needs = [need(role, _started(section, learner.model)) for role, section in sections.items()]
    return needs, batches


def _started(section: ForwardConfig, start: ModelConfig) -> ForwardConfig:
    """With the model that it starts from where it names none."""
    return section.model_copy(update={"model": section.model.or_from(start)})
