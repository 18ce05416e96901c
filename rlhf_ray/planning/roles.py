"""The roles of a job with their models, and its batches, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlhf_ray.config.base import ForwardConfig, GroupConfig, JobConfig, ModelConfig, ZeroConfig
from rlhf_ray.config.online import OnlineConfig, PublicationConfig
from rlhf_ray.config.sample import SampleConfig
from rlhf_ray.config.supervised import DpoConfig, RmConfig, SupervisedConfig
from rlhf_ray.planning.batches import Batches, batches_of
from rlhf_ray.planning.model_shape import Head, ModelShape
from rlhf_ray.planning.work import BareWork, EngineWork, ModelWork, Pass, Use, Work

# Where neither configuration nor model says how long a sequence may be.
DEFAULT_CONTEXT = 4096
# Shapes by the path that a configuration names.
Shapes = Mapping[str, ModelShape]


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
    context = (
        config.rollout.max_model_len
        or shapes[config.policy.model.path].context_tokens
        or DEFAULT_CONTEXT
    )
    batches = _online_batches(config, context)
    engine = EngineWork(
        group=config.placement.rollout,
        shape=shapes[config.policy.model.path],
        rollout=config.rollout,
        max_model_len=context,
        sleeps=config.engines_sleep,
        bucket_mb=config.publication.bucket_mb,
    )
    scorer = _scorer(config, shapes, batches.row_tokens)
    work: list[Work] = [_online_model(config, "policy", shapes, batches), engine, scorer]
    if config.uses_reference:
        work.append(_online_model(config, "reference", shapes, batches))
    if config.uses_value:
        work.append(_online_model(config, "value", shapes, batches))
    return work, batches


def _online_batches(config: OnlineConfig, context: int) -> Batches:
    prompt = config.data.prompt_tokens or config.data.max_prompt_tokens or context
    rows = config.prompts_per_step * config.samples_per_prompt
    row_tokens = min(context, prompt + config.rollout.max_new_tokens)
    if isinstance(config, SampleConfig):
        return Batches(rows=rows, row_tokens=row_tokens)
    return batches_of(
        rows=rows,
        row_tokens=row_tokens,
        minibatches=config.algorithm.minibatches,
        epochs=config.algorithm.epochs,
        ranks=config.placement.policy.ranks,
        budget=config.policy.max_tokens_per_micro_batch,
    )


def _online_model(config: OnlineConfig, role: str, shapes: Shapes, batches: Batches) -> ModelWork:
    use: Use = "read" if role == "reference" else "train"
    if isinstance(config, SampleConfig):  # nothing learns
        use = "publish" if role == "policy" else "read"
    return _model_work(
        role,
        config.groups[role],
        shapes,
        getattr(config, role),
        policy=config.policy.model,
        head="value" if role == "value" else "lm",
        use=use,
        read_rows=0 if use == "publish" else batches.rows,
        trained_rows=batches.rows_per_optimizer_step if use == "train" else 0,
        row_tokens=batches.row_tokens,
        scored_share=min(1.0, config.rollout.max_new_tokens / batches.row_tokens),
        publication=config.publication if role == "policy" else None,
        prompt_tokens=max(1, batches.row_tokens - config.rollout.max_new_tokens),
        offloads=_on_engines_gpus(config, role),
    )


def _on_engines_gpus(config: OnlineConfig, role: str) -> bool:
    """Whether a role lives on GPUs of the engines' group."""
    group, rollout = config.groups[role], config.placement.rollout
    together = group.host_of(role) == rollout.host_of("rollout")
    return bool(together and group.gpus_per_rank and rollout.gpus_per_rank)


def _scorer(config: OnlineConfig, shapes: Shapes, row_tokens: int) -> Work:
    group, model = config.placement.reward, config.reward.model
    if not model.path:
        return BareWork(role="reward", section="reward", group=group)
    longest = min(row_tokens, model.max_length or row_tokens)
    budget = model.max_tokens_per_micro_batch
    return ModelWork(
        role="reward",
        section="reward.model",
        group=group,
        shape=shapes[model.path],
        model=ModelConfig(path=model.path, dtype=model.dtype),
        zero=ZeroConfig(),
        head="score",
        use="read",
        reading=Pass(tokens=max(1, budget // longest) * longest, logits_tokens=0),
        offloads=_on_engines_gpus(config, "reward"),
    )


def _supervised(config: SupervisedConfig, shapes: Shapes) -> tuple[list[Work], Batches]:
    learner, role = config.learner, config.trained_role
    length = config.max_length or shapes[learner.model.path].context_tokens or DEFAULT_CONTEXT
    batches = batches_of(
        rows=config.batch_size,
        row_tokens=(2 if _compares(config) else 1) * length,
        minibatches=1,
        epochs=1,
        ranks=config.num_ranks,
        budget=learner.max_tokens_per_micro_batch,
    )

    def model(role: str, forward: ForwardConfig, head: Head, use: Use) -> ModelWork:
        return _model_work(
            role,
            config.groups[role],
            shapes,
            forward,
            policy=learner.model,
            head=head,
            use=use,
            read_rows=_read_rows(config, use, batches.rows),
            trained_rows=batches.rows if use == "train" else 0,
            row_tokens=batches.row_tokens,
            leaves=use == "read" and getattr(config, "reference_kind", "") == "precomputed",
        )

    head: Head = "score" if isinstance(config, RmConfig) else "lm"
    work: list[Work] = [model(role, learner, head, "train")]
    if isinstance(config, DpoConfig) and config.uses_reference_role:
        work.append(model("reference", config.reference, "lm", "read"))
    return work, batches


def _read_rows(config: SupervisedConfig, use: Use, batch_rows: int) -> int | None:
    """Rows that one call scores without training on them; None for as many as fill a micro-batch.

    Those are the held-out rows, a reward model's reference answers, and all rows where a reference
    scores them ahead.
    """
    ahead = isinstance(config, DpoConfig) and config.reference_kind == "precomputed"
    if config.eval.data.is_named or isinstance(config, RmConfig) or (use == "read" and ahead):
        return None
    return batch_rows if use == "read" else 0


def _compares(config: SupervisedConfig) -> bool:
    """Whether a row has two answers; a ranking may have more, which then count as several pairs."""
    if isinstance(config, DpoConfig):
        return "kto" not in config.loss_type
    return isinstance(config, RmConfig)


def _model_work(
    role: str,
    group: GroupConfig,
    shapes: Shapes,
    forward: ForwardConfig,
    *,
    policy: ModelConfig,
    head: Head,
    use: Use,
    read_rows: int | None,
    trained_rows: int,
    row_tokens: int,
    scored_share: float = 1.0,
    publication: PublicationConfig | None = None,
    prompt_tokens: int = 0,
    leaves: bool = False,
    offloads: bool = False,
) -> ModelWork:
    """A role's work; where it names no model, it starts from the policy's.

    It reads `read_rows` at a time (None: as many as fill a micro-batch) and trains `trained_rows`
    in an optimiser step, each of at most `row_tokens`, of which `scored_share` are scored.
    """
    model = forward.model.or_from(policy)
    # Shorter rows fill a micro-batch up to its budget; a longer one goes alone.
    budget = max(forward.max_tokens_per_micro_batch, row_tokens)

    def over(tokens: int, share: float, *, backward: bool = False) -> Pass | None:
        tokens = min(budget, tokens)
        scored = math.ceil(share * tokens) if head == "lm" else 0
        logits_tokens = min(scored, forward.logits_chunk_tokens)
        one = Pass(tokens=tokens, logits_tokens=logits_tokens, backward=backward)
        return one if tokens else None

    def of_rank(rows: int | None) -> int:
        return budget if rows is None else math.ceil(rows / group.ranks) * row_tokens

    # Prompts, of which each rank scores all.
    probe = 0 if publication is None else publication.probe_sequences * prompt_tokens
    return ModelWork(
        role=role,
        section=role,
        group=group,
        shape=shapes[model.path],
        model=model,
        zero=forward.zero,
        head=head,
        use=use,
        reading=over(of_rank(read_rows), scored_share),
        training=over(of_rank(trained_rows), scored_share, backward=True),
        probe=over(probe, 1.0),
        publishes_mb=0 if publication is None else publication.bucket_mb,
        leaves=leaves,
        offloads=offloads,
    )
