"""Rewards: a model on ranks, functions and a remote scorer beside them, behind one role."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.turns import SLACK_S, Turns
from actors.ranks.free_ranks import FreeRanks
from actors.ranks.group import RankGroup
from actors.ranks.hosting import HostingRank
from actors.ranks.rank import free_memory
from actors.ranks.reward_worker import SIDE_BY_SIDE, LoadedFunctions, RewardWorker
from actors.weights.held_model import HeldModel, in_reach
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.config.rewards import (
    ENVIRONMENT,
    MODEL,
    REMOTE,
    RewardConfig,
    RewardModelConfig,
)
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.metrics.spans import recorded, span
from rlhf_ray.roles import Ref, RolloutGroup, SampleId
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


NO_FUNCTIONS = LoadedFunctions(weights={}, plain=())


@dataclass(frozen=True, kw_only=True)
class _Share:
    """Scorers of the worker that are asked about a group together.

    Attributes:
        names: Theirs.
        turns: Of groups, as many at a time as these can score.
        timeout_s: Of a group.
    """

    names: tuple[str, ...]
    turns: Turns
    timeout_s: float


@dataclass(eq=False)
class RewardGroup:
    """The reward role: ranks with a model, a worker for all other scorers, or both.

    Any number of groups may be asked about at a time. As many are let through as can be scored,
    first come first served, and a group's deadline begins then: one at a time to plain functions, a
    few to what waits for others, and one to each rank, which holds the whole model.

    Attributes:
        model: Ranks that host one; None without.
        worker: The process of all other scorers; None without.
        functions: What the worker has loaded.
        weights: Factor of each scorer in the sum.
    """

    reward: RewardConfig
    timeouts: TimeoutConfig
    model: RankGroup[RewardRank] | None
    worker: RoleHandle[RewardWorker] | None
    functions: LoadedFunctions = NO_FUNCTIONS
    weights: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing is scored."""
        self._ranks = None if self.model is None else FreeRanks(self.model.actors)
        self._shares = list(self._shares_of(self.functions))
        self.weights = dict(self.functions.weights)
        if self.model is not None:
            self.weights[MODEL] = self.reward.model.weight
        if self.reward.remote.url:
            self.weights[REMOTE] = self.reward.remote.weight

    def _shares_of(self, loaded: LoadedFunctions) -> Iterator[_Share]:
        reward_s = self.timeouts.reward_s
        beside = [name for name in loaded.weights if name not in loaded.plain]
        if self.reward.remote.url:
            beside.append(REMOTE)
        if loaded.plain:
            timeout_s = len(loaded.plain) * reward_s + SLACK_S
            yield _Share(names=loaded.plain, turns=Turns(on="the worker"), timeout_s=timeout_s)
        if beside:
            turns = Turns(SIDE_BY_SIDE, on="the worker")
            yield _Share(names=tuple(beside), turns=turns, timeout_s=reward_s + SLACK_S)

    async def offload(self) -> None:
        """Leave the engines' GPUs for the host; nothing where there is no model on them."""
        if self.model is not None:
            await self.model.offload()

    async def score(self, group: RolloutGroup) -> tuple[Score, ...]:
        """A score a sample; the first scorer that fails ends the others.

        Raises:
            RunError: A scorer failed; names it and the cause.
        """
        from rlhf_ray.rewards.batch import combine

        asked = [self._by_worker(share, group) for share in self._shares]
        by_model_G, *by_worker = await side_by_side([self._by_model(group), *asked])
        values = {name: of_name_G for found in by_worker for name, of_name_G in found.items()}
        if self.model is not None:
            values[MODEL] = [score.value for score in by_model_G]
        weights = self.weights
        if any(summary.num_turns for summary in group.summaries_G):
            values[ENVIRONMENT] = [summary.environment_reward for summary in group.summaries_G]
            weights = {**weights, ENVIRONMENT: 1.0}
        # A sum of floats depends on the order: functions as configured, remote, environment, model.
        ordered = {name: values[name] for name in weights if name != MODEL}
        scores_G = combine(ordered | values, weights, num_rows=len(group.summaries_G))
        if self.model is None:
            return tuple(scores_G)
        return tuple(
            replace(score, is_cut=by_model.is_cut)
            for score, by_model in zip(scores_G, by_model_G, strict=True)
        )

    async def _by_worker(self, share: _Share, group: RolloutGroup) -> Any:
        """Scorer's name -> one value a sample."""
        assert self.worker is not None
        timeout_s = share.timeout_s
        async with share.turns.turn(f"draw {group.draw}", at_most_s=timeout_s):
            score = self.worker.call(RewardWorker.score, timeout_s=timeout_s)
            refs, samples_G = [group.rollouts], group.samples_G
            [values] = await score(share.names, refs, samples_G, timeout_s)
        return values

    async def _by_model(self, group: RolloutGroup) -> Any:
        """One `ModelScore` a sample; none without a model."""
        if self._ranks is None:
            return []
        score, timeout_s = RewardRank.score_with_model, self.timeouts.call_s
        refs, samples_G = [group.rollouts], group.samples_G
        return await self._ranks.call(score, timeout_s=timeout_s)(refs, samples_G)
