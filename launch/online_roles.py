"""Starting the roles of an online job on a pool, each with its model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.engine import EngineSpec
from actors.experience import Assembler, ExperienceBuilder
from actors.policy import PolicyGroup, PolicyRank
from actors.pool import ActorSet, Pool
from actors.probe import probe_sequences
from actors.reference import ReferenceGroup, ReferenceRank
from actors.replica_set import ReplicaSet
from actors.reward import RewardGroup, RewardRank
from actors.rollout import RolloutReplica
from actors.sync_spec import SyncSpec, backend_of
from actors.value import ValueGroup, ValueRank
from rlhf_ray.config.base import GroupConfig, LearnerConfig, ModelConfig
from rlhf_ray.config.online import OnlineConfig
from rlhf_ray.data.job import OnlineData
from rlhf_ray.roles import Roles
from rlhf_ray.specs import AssemblySpec, PolicySpec, ReferenceSpec, ValueSpec

# Largest gap of engine and trainer on a probe token that is let pass, in nats. bfloat16 keeps 8
# bits of each activation, and kernels round in another order.
MAX_GAP_FLOAT32, MAX_GAP_BFLOAT16 = 1e-3, 0.5


def roles_of(config: OnlineConfig) -> dict[str, GroupConfig]:
    """The groups that the job uses, by role."""
    placement = config.placement
    roles = {
        "policy": placement.policy,
        "rollout": placement.rollout,
        "reward": placement.reward,
    }
    if config.uses_reference:
        roles["reference"] = placement.reference
    if config.uses_value:
        roles["value"] = placement.value
    return roles


async def start_roles(config: OnlineConfig, data: OnlineData, pool: Pool) -> Roles:
    """Start what the pool does not hold yet, load the models, and connect trainer and engines.

    Raises:
        ConfigError: A model or scorer cannot be loaded.
        RunError: An actor died or missed its deadline.
    """
    pool.place(roles_of(config))
    actors = await _start_actors(config, data, pool)
    policy = PolicyGroup(actors["policy"], config.policy, config.timeouts)
    reward = RewardGroup(actors["reward"], config.reward, config.timeouts)
    loads = [
        _load(actors["policy"], _policy_spec(config), config),
        reward.load(),
    ]
    reference = value = None
    if config.uses_reference:
        reference = ReferenceGroup(actors["reference"], config.reference, config.timeouts)
        loads.append(_load(actors["reference"], _reference_spec(config), config))
    if config.uses_value:
        value = ValueGroup(actors["value"], config.value, config.timeouts)
        loads.append(_load(actors["value"], _value_spec(config), config))
    await asyncio.gather(*loads)
    await policy.connect(
        actors["rollout"],
        _sync_spec(config, actors["rollout"]),
        probe=probe_sequences(data.prompts, config.publication.probe_sequences),
        max_gap=_max_gap(config),
    )
    spec = AssemblySpec(
        algorithm=config.algorithm,
        shaping=config.reward.shaping,
        max_new_tokens=config.rollout.max_new_tokens,
    )
    return Roles(
        rollout=ReplicaSet(
            actors["rollout"],
            generate_timeout_s=config.timeouts.call_s,
            sleeps=_shares_gpus(config),
        ),
        policy=policy,
        reward=reward,
        assembler=Assembler(actors["experience"], spec, config.timeouts),
        reference=reference,
        value=value,
    )


async def _start_actors(
    config: OnlineConfig, data: OnlineData, pool: Pool
) -> Mapping[str, ActorSet]:
    """All actors side by side; those that live on another role's GPUs after their host."""
    starts: dict[str, Any] = {
        "experience": lambda: pool.helper("experience", ExperienceBuilder),
        "policy": lambda: pool.rank_group("policy", PolicyRank),
        "reward": lambda: pool.rank_group("reward", RewardRank),
        "rollout": lambda: pool.replica_set("rollout", RolloutReplica, _engine_spec(config, data)),
    }
    if config.uses_reference:
        starts["reference"] = lambda: pool.rank_group("reference", ReferenceRank)
    if config.uses_value:
        starts["value"] = lambda: pool.rank_group("value", ValueRank)
    roles = roles_of(config)
    guests = [role for role in starts if role in roles and roles[role].share]
    actors: dict[str, ActorSet] = {}
    for names in ([role for role in starts if role not in guests], guests):
        started = await asyncio.gather(*(starts[name]() for name in names))
        actors.update(zip(names, started, strict=True))
    return actors


async def _load(actors: ActorSet, spec: Any, config: OnlineConfig) -> None:
    await actors.call("load", spec, timeout_s=config.timeouts.start_s)


def _policy_spec(config: OnlineConfig) -> PolicySpec:
    return PolicySpec(
        learner=config.policy,
        algorithm=config.algorithm,
        temperature=config.rollout.temperature,
        max_new_tokens=config.rollout.max_new_tokens,
        total_steps=_optimiser_steps(config),
        replay_folder=str(Path(config.run_dir) / "skipped" / "policy"),
        seed=config.seed,
    )


def _value_spec(config: OnlineConfig) -> ValueSpec:
    model = _model_or_policys(config.value.model, config.policy.model)
    learner: LearnerConfig = config.value.model_copy(update={"model": model})
    return ValueSpec(
        learner=learner,
        algorithm=config.algorithm,
        max_new_tokens=config.rollout.max_new_tokens,
        total_steps=_optimiser_steps(config),
        replay_folder=str(Path(config.run_dir) / "skipped" / "value"),
        seed=config.seed,
    )


def _reference_spec(config: OnlineConfig) -> ReferenceSpec:
    model = _model_or_policys(config.reference.model, config.policy.model)
    return ReferenceSpec(
        reference=config.reference.model_copy(update={"model": model}),
        temperature=config.rollout.temperature,
    )


def _model_or_policys(model: ModelConfig, policy: ModelConfig) -> ModelConfig:
    """A role's model; where it names none, the one that the policy starts from."""
    if model.path:
        return model
    start = {
        "path": policy.path,
        "revision": policy.revision,
        "trust_remote_code": policy.trust_remote_code,
    }
    return model.model_copy(update=start)


def _optimiser_steps(config: OnlineConfig) -> int:
    return config.total_steps * config.algorithm.epochs * config.algorithm.minibatches


def _engine_spec(config: OnlineConfig, data: OnlineData) -> EngineSpec:
    return EngineSpec(
        model_path=config.policy.model.path,
        tokenizer_path=config.policy.model.tokenizer or config.policy.model.path,
        revision=config.policy.model.revision,
        trust_remote_code=config.policy.model.trust_remote_code,
        rollout=config.rollout,
        max_model_len=data.context_tokens,
        num_gpus=config.placement.rollout.gpus_per_rank,
        weight_backend=_backend(config),
        sleeps=_shares_gpus(config),
        timeout_s=config.timeouts.call_s,
        seed=config.seed,
    )


def _sync_spec(config: OnlineConfig, replicas: ActorSet) -> SyncSpec:
    return SyncSpec(
        backend=_backend(config),
        replicas=tuple(replicas.actors),
        names=tuple(replicas.names),
        gpus_per_replica=config.placement.rollout.gpus_per_rank,
        bucket_bytes=config.publication.bucket_mb * 2**20,
        timeout_s=config.timeouts.publish_s,
    )


def _backend(config: OnlineConfig) -> str:
    return backend_of(config.publication, config.placement)


def _shares_gpus(config: OnlineConfig) -> bool:
    """Whether the engines' GPUs serve another role between rollouts."""
    rollout = config.placement.rollout
    guests = [g for g in roles_of(config).values() if g.share == "rollout" and g.gpus_per_rank]
    return bool(rollout.gpus_per_rank and (rollout.share or guests))


def _max_gap(config: OnlineConfig) -> float:
    if config.publication.max_logprob_gap:
        return config.publication.max_logprob_gap
    dtypes = {config.policy.model.dtype, config.rollout.dtype}
    on_cpu = not config.placement.rollout.gpus_per_rank
    exact = dtypes == {"float32"} or (on_cpu and "bfloat16" not in dtypes)
    # A quantized trainer computes with rounded activations, the engine with whole ones.
    exact = exact and config.policy.model.quantization == "none"
    return MAX_GAP_FLOAT32 if exact else MAX_GAP_BFLOAT16
