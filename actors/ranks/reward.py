"""Rewards: a model on ranks, functions and services on workers, behind one role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from actors.ranks.free_ranks import FreeRanks
from actors.ranks.group import RankGroup
from actors.ranks.hosting import HostingRank
from actors.ranks.rank import free_memory
from actors.ranks.reward_workers import RewardWorkers
from actors.weights.held_model import HeldModel, in_reach
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.rewards import ENVIRONMENT, MODEL, RewardConfig, RewardModelConfig
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.roles.groups import Ref, RolloutGroup, SampleId
from rlhf_ray.specs import RewardSpec
from rlhf_ray.types import Score

if TYPE_CHECKING:
    from rlhf_ray.learner.reward_scorer import ModelScore


class RewardRank(HostingRank):
    """One rank of the reward's group, which scores its rows with the model.

    It also trains reward models, as any rank hosts any learner.

    Attributes:
        model: What scores; None without a reward model.
    """

    model: Any = None

    @recorded
    def load(self, spec: Any, held: Sequence[HeldModel] = ()) -> None:
        """Host the model of a `RewardSpec`, or a learner.

        The model that was trained here scores as it stands, if it is the one that is asked for.

        Raises:
            ConfigError: It cannot be loaded.
        """
        if not isinstance(spec, RewardSpec):
            super().load(spec, held)
            return
        from rlhf_ray.learner.build import make_scorer

        model = spec.reward.model
        trained = self._trained_here(model)
        self.unload()
        with in_reach(held, timeout_s=self.fetch_timeout_s):
            self.model = make_scorer(spec, device=self.device, model=trained)
        self.residency = self.model.engine.residency
        free_memory()

    def _trained_here(self, model: RewardModelConfig) -> Any:
        """The module that was trained here for the path of `model`, if whole and in its dtype."""
        if self.builder is None or model.path != self.learner_path:
            return None
        from rlhf_ray.models.modes import resolve_dtype

        job, trained = self.learner.job, self.learner.model
        same = (
            not self.builder.shards_weights
            and job.float32_loss
            and model.label == trained.label
            and resolve_dtype(model.dtype, self.device)
            is resolve_dtype(job.reward.model.dtype, self.device)
        )
        if not same:
            return None
        self._to_read()
        return trained

    def unload(self) -> None:
        """Release what trains and what scores."""
        self.model = None
        super().unload()

    def score_with_model(
        self, refs: Sequence[Ref], samples_G: Sequence[SampleId]
    ) -> list[ModelScore]:
        """The model's scores of a group's samples, which depend on no other group."""
        draw, _ = samples_G[0]
        with span("score", draw=draw):
            rollouts = self.fetch(refs, draw=draw)
            self._to_read()
            scores: list[ModelScore] = self.model.score([rollouts[sample] for sample in samples_G])
            return scores


@dataclass(eq=False)
class RewardGroup:
    """The reward role: ranks with a model, workers for all other scorers, or both.

    Any number of groups may be asked about at a time: each rank holds the whole model, and has one
    at a time.

    Attributes:
        model: Ranks that host one; None without.
        workers: The processes of all other scorers; None without.
        weights: Factor of each scorer in the sum.
    """

    reward: RewardConfig
    timeouts: TimeoutConfig
    model: RankGroup[RewardRank] | None
    workers: RewardWorkers | None
    weights: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is scored."""
        self._ranks = None if self.model is None else FreeRanks(self.model.actors)
        self.weights = {} if self.workers is None else dict(self.workers.weights)
        if self.model is not None:
            self.weights[MODEL] = self.reward.model.weight

    async def offload(self) -> None:
        """Leave the engines' GPUs for the host; nothing where there is no model on them."""
        if self.model is not None:
            await self.model.offload()

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        """A score a sample; the first scorer that fails ends the others.

        Raises:
            GroupFailed: A function or a service failed at this group.
            RunError: A scorer failed otherwise; names it and the cause.
        """
        from rlhf_ray.rewards.batch import combine

        by_model_G, found = await side_by_side([self._by_model(group), self._by_workers(group)])
        values = dict(found)
        if self.model is not None:
            values[MODEL] = [score.value for score in by_model_G]
        weights = self.weights
        if any(summary.num_turns for summary in group.summaries_G):
            values[ENVIRONMENT] = [summary.environment_reward for summary in group.summaries_G]
            weights = {**weights, ENVIRONMENT: 1.0}
        # A sum of floats depends on the order: functions as configured, services, environment,
        # model.
        ordered = {name: values[name] for name in weights if name != MODEL}
        scores_G = combine(ordered | values, weights, num_rows=len(group.summaries_G))
        if self.model is None:
            return tuple(scores_G)
        return tuple(
            replace(score, is_cut=by_model.is_cut)
            for score, by_model in zip(scores_G, by_model_G, strict=True)
        )

    async def _by_workers(self, group: RolloutGroup) -> Any:
        """Scorer's name -> one value a sample; nothing without workers."""
        return {} if self.workers is None else await self.workers.score(group)

    async def _by_model(self, group: RolloutGroup) -> Any:
        """One `ModelScore` a sample; none without a model."""
        if self._ranks is None:
            return []
        score, timeout_s = RewardRank.score_with_model, self.timeouts.call_s
        refs, samples_G = [group.rollouts], group.samples_G
        return await self._ranks.call(score, timeout_s=timeout_s)(refs, samples_G)
