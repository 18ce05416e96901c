"""PPO, GRPO and their kin, and the own defaults of these two."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, PositiveInt

from rlhf_ray.config.algorithm import AlgorithmConfig, KlConfig
from rlhf_ray.config.algorithm_table import OldLogprobs, ScoredModel
from rlhf_ray.config.base import NonNegativeInt
from rlhf_ray.config.data import DataConfig, named, piece_faults, stream_faults
from rlhf_ray.config.environment import FREE_DEATHS, EnvironmentConfig
from rlhf_ray.config.evaluation import EvalConfig
from rlhf_ray.config.learners import CriticConfig, LearnerConfig, ReferenceConfig
from rlhf_ray.config.models import ModelSource
from rlhf_ray.config.placement import GroupConfig, PlacementConfig
from rlhf_ray.config.publication import (
    ADAPTER_RANKS,
    EXACT_GAP,
    MOST_HOST_BUCKET_MB,
    Backend,
    PublicationConfig,
    backend_of,
)
from rlhf_ray.config.reference import ReferenceKind, is_base_of
from rlhf_ray.config.rewards import ENVIRONMENT, RewardConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.sentinels import OnlineSentinelsConfig


class OnlineConfig(JobConfig):
    """PPO, GRPO and their kin: rollouts, scores, advantages, updates.

    Attributes:
        max_staleness: How many publications may pass between the weights that sampled a group and
            those that it is trained on. 0 samples a step's groups, then trains them. With more,
            sampling goes on while earlier steps are trained, that many steps ahead at most.
        reference_kind: What the KL is measured to: `role`, a model on a group of its own, or
            `adapter_off`, the policy without its LoRA adapter, on the policy's own ranks. `auto` is
            the second where the policy has an adapter and `reference.model` names no other model.
        empty_steps_to_stop: Steps with nothing to train, one after the other, that stop the run:
            rewards applied to no rollout, dynamic sampling found no group whose scores differ, or
            all were cut off and `algorithm.truncated` is `mask`.
    """

    fixed_keys: ClassVar[tuple[str, ...]] = ("algorithm.kl.controller",)

    prompts_per_step: PositiveInt = 32
    samples_per_prompt: PositiveInt = 8
    max_staleness: NonNegativeInt = 0
    data: DataConfig
    policy: LearnerConfig
    value: CriticConfig = CriticConfig()
    reference_kind: ReferenceKind = "auto"
    reference: ReferenceConfig = ReferenceConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    algorithm: AlgorithmConfig
    publication: PublicationConfig = PublicationConfig()
    placement: PlacementConfig = PlacementConfig()
    eval: EvalConfig = EvalConfig()
    sentinels: OnlineSentinelsConfig = OnlineSentinelsConfig()
    empty_steps_to_stop: PositiveInt = 10

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        if not self.policy.model.path:
            yield "policy.model.path must name a model"
        if not self.data.is_named:
            yield "data.path must name a data set of prompts"
        yield from piece_faults({"data": self.data, "eval.data": self.eval.data})
        yield from stream_faults({"eval.data": self.eval.data})
        yield from self._unfit_counts()
        yield from self.environment.time_faults(self.timeouts.call_s)
        yield from self._unfit_rewards()
        yield from self._unfit_staleness()
        yield from self._unfit_old_logprobs()
        if self.reference_kind == "adapter_off" and not self.policy.model.lora.rank:
            yield (
                "reference_kind adapter_off needs policy.model.lora.rank above 0: without an "
                "adapter the policy is all there is"
            )
        for role in ("policy", "value"):
            dropout = getattr(self, role).model.lora.dropout
            if dropout:
                yield (
                    f"{role}.model.lora.dropout must be 0, got {dropout}: a token must get the "
                    "same probability before and in the update"
                )
        yield from self._unfit_adapters()
        _ = self.weight_backend  # raises where no way leads to the engines

    def _unfit_adapters(self) -> Iterator[str]:
        if not self.adapters_apart:
            return
        rank, backend = self.policy.model.lora.rank, self.publication.backend
        if not 0 < rank <= ADAPTER_RANKS[-1]:
            yield (
                "publication.adapters apart needs policy.model.lora.rank between 1 and "
                f"{ADAPTER_RANKS[-1]}, got {rank}"
            )
        if backend in ("nccl", "ipc"):
            yield (
                f"publication.backend {backend} sends merged weights: leave it at auto with "
                "publication.adapters apart, which takes the way through the hosts' memory"
            )

    def _unfit_counts(self) -> Iterator[str]:
        if self.samples_per_prompt == 1 and (
            self.smallest_group > 1 or self.algorithm.dynamic_sampling.enabled
        ):
            yield (
                "samples_per_prompt must be at least 2 where a group is compared with itself "
                f"(advantage {self.algorithm.advantage}): one sample alone has advantage 0"
            )
        num_rollouts = self.prompts_per_step * self.samples_per_prompt
        if self.algorithm.minibatches > num_rollouts:
            yield (
                f"algorithm.minibatches must be at most the step's {num_rollouts} rollouts, "
                f"got {self.algorithm.minibatches}"
            )
        warmup = self.value.warmup_steps
        if warmup and not self.uses_value:
            yield (
                f"value.warmup_steps must be 0 without a critic (advantage "
                f"{self.algorithm.advantage}), got {warmup}"
            )
        if warmup >= self.total_steps:
            yield (
                f"value.warmup_steps must be below total_steps ({self.total_steps}), got {warmup}: "
                "the policy would not learn"
            )

    def _unfit_rewards(self) -> Iterator[str]:
        if not (self.reward.num_scorers or self.environment.is_named):
            yield (
                "no reward: set reward.functions, reward.model.path, reward.remote.url, "
                "reward.judge.url or environment.path"
            )
        taken = [f.name for f in self.reward.functions if f.name == ENVIRONMENT]
        if taken and self.environment.is_named:
            yield f"reward.functions must not be called {ENVIRONMENT!r}: the environment's is"
        shaping = self.reward.shaping
        buffer = shaping.overlong_buffer_tokens
        if buffer > self.rollout.max_new_tokens:
            yield (
                "reward.shaping.overlong_buffer_tokens must be at most rollout.max_new_tokens "
                f"({self.rollout.max_new_tokens}), got {buffer}"
            )
        kl = self.algorithm.kl
        if kl.controller == "adaptive" and not kl.coefficient:
            yield "algorithm.kl.coefficient must be above 0 to adapt from, got 0"
        changed = {"clip": shaping.clip, "whiten": shaping.whiten}
        if self.algorithm.tells_rewards_apart and any(changed.values()):
            yield (
                "reward.shaping.clip and .whiten change the sum of the rewards, and advantage "
                f"{self.algorithm.advantage} standardises each by itself: leave them out, got "
                f"{changed}"
            )

    def _unfit_staleness(self) -> Iterator[str]:
        if not self.max_staleness:
            return
        if self.engines_sleep:
            yield (
                f"max_staleness must be 0 where {', '.join(sorted(self.on_engines_gpus))} and the "
                "engines share GPUs, as nothing can be sampled while those compute, got "
                f"{self.max_staleness}: give rollout GPUs of its own"
            )
        correction = self.algorithm.correction
        if correction.kind == "none" and not correction.allow_uncorrected:
            yield (
                f"algorithm.correction.kind must not be none with max_staleness "
                f"{self.max_staleness}: older weights sampled what is trained; "
                "algorithm.correction.allow_uncorrected: true trains it all the same"
            )

    def _unfit_old_logprobs(self) -> Iterator[str]:
        if self.algorithm.old_logprobs != "engine":
            return
        if self.max_staleness:
            yield (
                f"algorithm.old_logprobs must not be engine with max_staleness "
                f"{self.max_staleness}: older weights sampled, and the policy at the step's start "
                "is another one; take auto or trainer"
            )
        if reason := self.rollout.changed_logprobs:
            yield f"algorithm.old_logprobs must not be engine where {reason}; take auto or trainer"

    @property
    def old_logprobs(self) -> OldLogprobs:
        """Where the policy's log-probabilities at the start of a step come from."""
        asked = self.algorithm.old_logprobs
        if asked != "auto":
            return asked
        if self.algorithm.updates_know_old:
            return "update"
        limit = self.publication.max_logprob_gap or (
            EXACT_GAP if self.computes_in_float32 else math.inf
        )
        is_exact = limit <= EXACT_GAP and not self.rollout.changed_logprobs
        return "engine" if is_exact and not self.max_staleness else "trainer"

    @property
    def computes_in_float32(self) -> bool:
        """Whether engine and trainer both do, so that they agree to rounding."""
        dtypes = {self.policy.model.dtype, self.rollout.dtype}
        placement = self.placement
        on_cpu = not (placement.policy.gpus_per_rank or placement.rollout.gpus_per_rank)
        exact = dtypes == {"float32"} or (on_cpu and "bfloat16" not in dtypes)
        # A quantized trainer computes with rounded activations, the engine with whole ones.
        return exact and self.policy.model.quantization == "none"

    @property
    def scored_models(self) -> tuple[ScoredModel, ...]:
        """What the policy's ranks pass a step's rollouts through before the update."""
        if not self.trains:
            return ()
        passes: dict[ScoredModel, bool] = {
            "policy": self.old_logprobs == "trainer",
            "base": self.uses_reference and not self.uses_reference_role,
        }
        return tuple(model for model, is_needed in passes.items() if is_needed)

    @property
    def weight_backend(self) -> Backend:
        """How weights travel to the engines: `publication.backend`, resolved."""
        if self.adapters_apart:
            return "object_store"
        placement = self.placement
        return backend_of(
            self.publication.backend, policy=placement.policy, rollout=placement.rollout
        )

    @property
    def adapters_apart(self) -> bool:
        """Whether engines get the policy's adapters and what these change apart."""
        return self.publication.adapters == "apart"

    @property
    def bucket_mb(self) -> int:
        """Size of the buckets in which weights travel."""
        asked = self.publication.bucket_mb
        return min(asked, MOST_HOST_BUCKET_MB) if self.weight_backend == "object_store" else asked

    @property
    def engines_sleep(self) -> bool:
        """Whether the engines' GPUs serve another role between rollouts."""
        return bool(self.on_engines_gpus)

    @property
    def on_engines_gpus(self) -> frozenset[str]:
        """The other roles that live on the engines' GPUs, and leave them while engines sample."""
        engines = self.placement.rollout
        if not engines.gpus_per_rank:
            return frozenset()
        host = engines.host_of("rollout")
        return frozenset(
            role
            for role, group in self.groups.items()
            if role != "rollout" and group.gpus_per_rank and group.host_of(role) == host
        )

    @property
    def scores_on_engines_gpus(self) -> bool:
        """Whether a reward model computes where the engines do, which have to leave first."""
        return "reward" in self.on_engines_gpus and bool(self.reward.model.path)

    @property
    def scores_behind_engines(self) -> bool:
        """Whether a reward model waits for engines: it computes on their GPUs or their cores."""
        model, engines = self.placement.reward, self.placement.rollout
        takes_all_cores = all(
            group.cpus_per_rank == "auto" and not group.gpus_per_rank for group in (model, engines)
        )
        shares_cores = takes_all_cores and not self.max_staleness and bool(self.reward.model.path)
        return shares_cores or self.scores_on_engines_gpus

    @property
    def groups(self) -> dict[str, GroupConfig]:
        """The group of each role that the job uses."""
        placement = self.placement
        groups = {"policy": placement.policy, "rollout": placement.rollout}
        if self.reward.model.path:
            groups["reward"] = placement.reward
        if self.reward.needs_workers:
            groups["reward_worker"] = placement.reward_worker
        if self.environment.is_named:
            groups["environment"] = self.environment.group
        if self.uses_reference_role:
            groups["reference"] = placement.reference
        if self.uses_value:
            groups["value"] = placement.value
        return groups

    @property
    def data_sets(self) -> dict[str, DataConfig]:
        """The data sets that the configuration names, by their keys."""
        return named({"data": self.data, "eval.data": self.eval.data})

    @property
    def models(self) -> dict[str, ModelSource]:
        """The model of each role that loads one, as the configuration names it."""
        models: dict[str, ModelSource] = {"policy": self.policy.model}
        if self.uses_reference_role:
            models["reference"] = self.reference.model
        if self.uses_value:
            models["value"] = self.value.model
        return models | ({"reward": self.reward.model} if self.reward.model.path else {})

    @property
    def learners(self) -> dict[str, LearnerConfig]:
        """The policy's, and the critic's where there is one."""
        return super().learners | ({"value": self.value} if self.uses_value else {})

    @property
    def policy_updates(self) -> int:
        """Optimiser steps of the policy in the whole run."""
        return self._updates(self.total_steps - self.value.warmup_steps)

    @property
    def value_updates(self) -> int:
        """Optimiser steps of the critic in the whole run."""
        return self._updates(self.total_steps)

    def _updates(self, num_steps: int) -> int:
        return num_steps * self.algorithm.epochs * self.algorithm.minibatches

    @property
    def most_attempts(self) -> int:
        """At sampling a group: an environment may fail, and its worker die by another's doing."""
        return FREE_DEATHS + 1 + self.failures.row.retries if self.environment.is_named else 1

    @property
    def max_response_tokens(self) -> int:
        """Of a rollout: the policy's, and with an environment about as many as its messages have.

        The engine's context is what limits these.
        """
        return self.rollout.max_new_tokens + self.environment.room_tokens

    @property
    def uses_reference(self) -> bool:
        """Whether the KL to a reference model is part of training."""
        return self.algorithm.kl.coefficient > 0

    @property
    def uses_reference_role(self) -> bool:
        """Whether the reference lives on a group of its own."""
        return self.uses_reference and not is_base_of(
            self.policy.model, self.reference.model, self.reference_kind
        )

    @property
    def smallest_group(self) -> int:
        """Scored samples that a draw needs to be trained: 2 where they are compared."""
        return 2 if self.algorithm.advantage_row.needs_groups else 1

    @property
    def uses_value(self) -> bool:
        """Whether the advantage needs a critic."""
        return self.algorithm.advantage_row.needs_values


class GrpoConfig(OnlineConfig):
    """GRPO (arXiv 2402.03300): the group's other samples are the baseline."""

    job = "grpo"

    algorithm: AlgorithmConfig = Field(default_factory=lambda: AlgorithmConfig(advantage="grpo"))


class PpoConfig(OnlineConfig):
    """PPO (arXiv 1707.06347) with a critic, generalised advantages and KL in the reward."""

    job = "ppo"

    samples_per_prompt: PositiveInt = 4
    algorithm: AlgorithmConfig = Field(
        default_factory=lambda: AlgorithmConfig(
            advantage="gae",
            whiten_advantages=True,
            minibatches=4,
            kl=KlConfig(coefficient=0.05, where="reward"),
        )
    )
