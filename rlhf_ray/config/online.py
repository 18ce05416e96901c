"""PPO and GRPO: rollouts, rewards, algorithm, and the two jobs' own defaults."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from rlhf_ray.config.algorithm import AlgorithmConfig, KlConfig
from rlhf_ray.config.base import (
    Config,
    GroupConfig,
    LearnerConfig,
    ModelSource,
    NonNegativeFloat,
    NonNegativeInt,
    Placement,
    ReferenceConfig,
)
from rlhf_ray.config.data import DataConfig, named, piece_faults, stream_faults
from rlhf_ray.config.publication import Backend, backend_of
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.sentinels import OnlineSentinelsConfig


class PublicationConfig(Config):
    """Weights to the engines, and the probe that follows.

    Attributes:
        backend: `auto` is `object_store` where engines run on CPUs, `ipc` where policy and rollout
            share GPUs, else `nccl`.
        bucket_mb: Weights travel in buckets of about this size.
        running: What becomes of responses that are being sampled meanwhile. `recompute`: their
            tokens so far pass the new weights before the next one is sampled, which takes time, and
            that token is the new weights' own. `keep` spares that: what older weights left in the
            cache of a response stays. The recorded log-probabilities are true in both.
        probe_sequences: Prompts that engine and trainer score after each publication. For a 99th
            percentile a hundred tokens are few; 16 prompts of 100 tokens are 1,600.
        max_logprob_gap: The run stops where engine and trainer differ by more on a probe token, in
            nats; 0 takes 1e-3 where both compute in float32, else none: there single tokens of
            healthy pairs are half a nat apart.
        max_logprob_gap_mean: The same for the mean of all tokens; 0 takes 0.15 where
            `max_logprob_gap` takes none.
        max_logprob_gap_p99: The same for the 99th percentile; 0 takes 1.0 there.
    """

    backend: Literal["auto", "object_store", "ipc", "nccl"] = "auto"
    bucket_mb: PositiveInt = 256
    running: Literal["recompute", "keep"] = "recompute"
    probe_sequences: PositiveInt = 16
    max_logprob_gap: NonNegativeFloat = 0.0
    max_logprob_gap_mean: NonNegativeFloat = 0.0
    max_logprob_gap_p99: NonNegativeFloat = 0.0


class EvalConfig(Config):
    """Evaluation on held-out prompts: before the first, every `every` and after the last step.

    Attributes:
        samples_per_prompt: k; `eval/reward_mean` is the mean over all samples (mean@k),
            `eval/best_of_k` that of each prompt's best, which is pass@k for rewards of 0 and 1.
        temperature: 0 is greedy.
    """

    data: DataConfig = DataConfig()
    every: NonNegativeInt = 0
    num_prompts: PositiveInt = 64
    samples_per_prompt: PositiveInt = 1
    temperature: NonNegativeFloat = 0.0
    table_rows: NonNegativeInt = 4

    def _faults(self) -> Iterator[str]:
        if self.samples_per_prompt > 1 and not self.temperature:
            yield (
                f"temperature must be above 0 for samples_per_prompt {self.samples_per_prompt}: "
                "greedy samples of a prompt are all the same"
            )


class PlacementConfig(Placement):
    """A group for every role."""

    policy: GroupConfig = GroupConfig()
    reference: GroupConfig = GroupConfig()
    reward: GroupConfig = GroupConfig()
    value: GroupConfig = GroupConfig()
    rollout: GroupConfig = GroupConfig()


class CriticConfig(LearnerConfig):
    """The critic.

    Attributes:
        warmup_steps: Steps at the start, of `total_steps`, in which only the critic learns: the
            policy takes no optimiser step, so that its schedule runs over the steps after them.
    """

    warmup_steps: NonNegativeInt = 0


class OnlineConfig(JobConfig):
    """PPO, GRPO and their kin: rollouts, scores, advantages, updates.

    Attributes:
        max_staleness: How many publications may pass between the weights that sampled a group and
            those that it is trained on. 0 samples a step's groups, then trains them. With more,
            sampling goes on while earlier steps are trained, that many steps ahead at most.
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
    reference: ReferenceConfig = ReferenceConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig
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
        yield from self._unfit_rewards()
        yield from self._unfit_staleness()
        for role in ("policy", "value"):
            dropout = getattr(self, role).model.lora.dropout
            if dropout:
                yield (
                    f"{role}.model.lora.dropout must be 0, got {dropout}: a token must get the "
                    "same probability before and in the update"
                )
        _ = self.weight_backend  # raises where no way leads to the engines

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

    @property
    def weight_backend(self) -> Backend:
        """How weights travel to the engines: `publication.backend`, resolved."""
        placement = self.placement
        return backend_of(
            self.publication.backend, policy=placement.policy, rollout=placement.rollout
        )

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
        groups = {
            "policy": placement.policy,
            "rollout": placement.rollout,
            "reward": placement.reward,
        }
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
        return models | {"reward": self.reward.model}

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
    def uses_reference_role(self) -> bool:
        """Whether the KL to a reference model is part of training."""
        return self.algorithm.kl.coefficient > 0

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
