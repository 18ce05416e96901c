"""Starting the roles of an online job on a pool, each with its model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

from actors.engines.replica_set import ReplicaSet
from actors.engines.sampling import Ending
from actors.engines.spec import EngineSpec
from actors.pool.pool import Pool
from actors.ranks.experience import ExperienceGroup
from actors.ranks.group import RankGroup
from actors.ranks.policy import PolicyGroup
from actors.ranks.reference import ReferenceGroup
from actors.ranks.reward import RewardGroup
from actors.ranks.reward_worker import REWARD_WORKER
from actors.ranks.value import ValueGroup
from actors.weights.probe import EXACT, ROUNDED, GapLimits, probe_sequences
from actors.weights.sync_spec import SyncSpec
from launch.training.actor_start import start_actors
from rlhf_ray.config.base import LearnerConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.job import OnlineData
from rlhf_ray.data.order import first_of
from rlhf_ray.models.identity import engine_identity
from rlhf_ray.models.limits import context_length
from rlhf_ray.roles import Roles
from rlhf_ray.specs import ExperienceSpec, PolicySpec, ReferenceSpec, RewardSpec, ValueSpec

# Among which the probe looks for prompts of more than one token.
SEARCHED_PROMPTS = 1024


async def start_roles(config: OnlineConfig, data: OnlineData, pool: Pool) -> Roles:
    """Start what the pool does not hold yet, load the models, and connect trainer and engines.

    Raises:
        ConfigError: A model or scorer cannot be loaded.
        RunError: An actor died or missed its deadline.
    """
    data.keep_tokenizer()
    engine = engine_spec(config, context_tokens=data.context_tokens)
    actors = await start_actors(pool, config.groups, [config], engine=engine)
    await pool.make_room(config.groups)
    leaving = config.on_engines_gpus
    policy = PolicyGroup(
        actors["policy"],
        config.policy,
        config.timeouts,
        pool.files_of("policy"),
        exports_with=data.tokenizer_path if config.checkpoint.export == "each" else "",
        leaves="policy" in leaving,
    )
    scoring = None
    if config.reward.model.path:
        scoring = RankGroup(actors["reward"], config.timeouts, leaves="reward" in leaving)
    worker = actors.get(REWARD_WORKER)
    reward = RewardGroup(config.reward, config.timeouts, model=scoring, worker=worker)
    reference = value = None
    if config.uses_reference:
        reference = ReferenceGroup(
            actors["reference"], config.reference, config.timeouts, leaves="reference" in leaving
        )
    if config.uses_value:
        value = ValueGroup(
            actors["value"],
            config.value,
            config.timeouts,
            pool.files_of("value"),
            leaves="value" in leaving,
        )
    rollout = ReplicaSet(
        actors["rollout"],
        Ending.of(config.rollout, data.end_token_ids),
        timeout_s=config.timeouts.call_s,
        sleeps=config.engines_sleep,
    )
    await rollout.sleep(level=2)  # the job begins with a publication
    await asyncio.gather(*_loads(config, data, pool))
    await reward.load(_reward_spec(config, data))
    await policy.connect(
        actors["rollout"],
        _sync_spec(config),
        probe=probe_sequences(
            first_of(data.prompts, SEARCHED_PROMPTS), config.publication.probe_sequences
        ),
        limits=gap_limits(config),
    )
    spec = ExperienceSpec(
        algorithm=config.algorithm,
        shaping=config.reward.shaping,
        max_new_tokens=config.rollout.max_new_tokens,
        reward_weights=reward.weights,
    )
    return Roles(
        rollout=rollout,
        policy=policy,
        reward=reward,
        experience=ExperienceGroup(actors["experience"], spec, config.timeouts),
        reference=reference,
        value=value,
    )


def _loads(config: OnlineConfig, data: OnlineData, pool: Pool) -> Sequence[Awaitable[None]]:
    """The loading of every role's model."""
    specs: dict[str, tuple[Any, str]] = {
        "policy": (_policy_spec(config), config.policy.model.path),
    }
    if config.reward.model.path:
        specs["reward"] = (_reward_spec(config, data), config.reward.model.path)
    if config.uses_reference:
        reference = _reference_spec(config)
        specs["reference"] = (reference, reference.reference.model.path)
    if config.uses_value:
        value = _value_spec(config)
        specs["value"] = (value, value.learner.model.path)
    leaving = config.on_engines_gpus
    return [
        pool.load(role, spec, path=path, leaves=role in leaving)
        for role, (spec, path) in specs.items()
    ]


def _reward_spec(config: OnlineConfig, data: OnlineData) -> RewardSpec:
    return RewardSpec(
        reward=config.reward,
        timeout_s=config.timeouts.reward_s,
        vocabulary=data.vocabulary,
        end_token_ids=data.end_token_ids,
    )


def _policy_spec(config: OnlineConfig) -> PolicySpec:
    return PolicySpec(
        learner=config.policy,
        algorithm=config.algorithm,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        total_steps=config.policy_updates,
        replay_folder=str(Path(config.run_dir) / "skipped" / "policy"),
        seed=config.seed,
    )


def _value_spec(config: OnlineConfig) -> ValueSpec:
    model = config.value.model.or_from(config.policy.model)
    learner: LearnerConfig = config.value.model_copy(update={"model": model})
    return ValueSpec(
        learner=learner,
        algorithm=config.algorithm,
        max_new_tokens=config.rollout.max_new_tokens,
        total_steps=config.value_updates,
        replay_folder=str(Path(config.run_dir) / "skipped" / "value"),
        seed=config.seed,
    )


def _reference_spec(config: OnlineConfig) -> ReferenceSpec:
    model = config.reference.model.or_from(config.policy.model)
    return ReferenceSpec(
        reference=config.reference.model_copy(update={"model": model}),
        temperature=config.rollout.temperature,
    )


def engine_spec(config: OnlineConfig, *, context_tokens: int) -> EngineSpec:
    """What the job's engines are started with.

    Raises:
        ConfigError: Model or tokenizer cannot be read.
    """
    model = config.policy.model
    return EngineSpec(
        model_path=model.path,
        tokenizer_path=model.tokenizer or model.path,
        revision=model.revision,
        identity=engine_identity(model),
        trust_remote_code=model.trust_remote_code,
        engine=config.rollout.of_engine,
        max_model_len=context_tokens,
        num_gpus=config.placement.rollout.gpus_per_rank,
        weight_backend=config.weight_backend,
        sleeps=config.engines_sleep,
    )


def engine_ahead(config: OnlineConfig) -> EngineSpec:
    """The same before the job's data are read."""
    model = config.policy.model
    context = config.rollout.max_model_len or context_length(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    return engine_spec(config, context_tokens=context)


def _sync_spec(config: OnlineConfig) -> SyncSpec:
    return SyncSpec(
        backend=config.weight_backend,
        gpus_per_replica=config.placement.rollout.gpus_per_rank,
        bucket_bytes=config.publication.bucket_mb * 2**20,
        timeout_s=config.timeouts.publish_s,
    )


def gap_limits(config: OnlineConfig) -> GapLimits:
    """What the probe lets pass: as configured, else by what both sides compute in."""
    publication = config.publication
    dtypes = {config.policy.model.dtype, config.rollout.dtype}
    placement = config.placement
    on_cpu = not (placement.policy.gpus_per_rank or placement.rollout.gpus_per_rank)
    exact = dtypes == {"float32"} or (on_cpu and "bfloat16" not in dtypes)
    # A quantized trainer computes with rounded activations, the engine with whole ones.
    exact = exact and config.policy.model.quantization == "none"
    default = EXACT if exact else ROUNDED
    return GapLimits(
        largest=publication.max_logprob_gap or default.largest,
        mean=publication.max_logprob_gap_mean or default.mean,
        p99=publication.max_logprob_gap_p99 or default.p99,
    )
