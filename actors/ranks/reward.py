"""Rewards: a model on ranks, functions and a remote scorer beside them, behind one role."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from actors.cluster.role_handle import RoleHandle, put
from actors.ranks.forward import Pass, by_row, rows_of
from actors.ranks.group import RankGroup
from actors.ranks.hosting import HostingRank
from actors.ranks.rank import free_memory
from actors.ranks.reward_worker import RewardWorker
from actors.weights.held_model import HeldModel, in_reach
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.config.rewards import MODEL, REMOTE, RewardConfig, RewardModelConfig
from rlhf_ray.roles import RolloutGroup
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

    def score_with_model(self, work: Pass) -> list[ModelScore]:
        """The model's scores of this rank's rows, in the order in which the plan names them."""
        rollouts = work.rows(self.fetch(work.refs))
        self._to_read()
        mine = [rollouts[row] for row in rows_of(work.plan[self.rank])]
        scores: list[ModelScore] = self.model.score(mine)
        return scores


@dataclass(eq=False)
class RewardGroup:
    """The reward role: ranks with a model, a worker for all other scorers, or both.

    Attributes:
        weights: Factor of each scorer in the sum; once it is loaded.
    """

    reward: RewardConfig
    timeouts: TimeoutConfig
    model: RankGroup[RewardRank] | None
    worker: RoleHandle[RewardWorker] | None
    weights: dict[str, float] = field(default_factory=dict, init=False)

    async def load(self, spec: RewardSpec) -> None:
        """Have the worker make its scorers; the ranks host the model already.

        Raises:
            RunError: One cannot be loaded; names it.
        """
        self.weights = {}
        if self.worker is not None:
            make = self.worker.call(RewardWorker.load, timeout_s=self.timeouts.start_s)
            [of_functions] = await make(spec)
            self.weights |= of_functions
        if self.model is not None:
            self.weights[MODEL] = self.reward.model.weight
        if self.reward.remote.url:
            self.weights[REMOTE] = self.reward.remote.weight

    async def offload(self) -> None:
        """Leave the engines' GPUs for the host; nothing where there is no model on them."""
        if self.model is not None:
            await self.model.offload()

    async def score(self, groups: Sequence[RolloutGroup]) -> Sequence[tuple[Score, ...]]:
        """One tuple a group, with a score a sample.

        Raises:
            RunError: A scorer failed; names it and the cause.
        """
        work = Pass.over(
            groups,
            data_parallel_size=1 if self.model is None else len(self.model.actors),
            max_tokens_per_micro_batch=self.reward.model.max_tokens_per_micro_batch,
            padded=True,
        )
        scores_B = iter(await self._score(work))
        return [tuple(islice(scores_B, len(group.summaries_G))) for group in groups]

    async def _score(self, work: Pass) -> Sequence[Score]:
        from rlhf_ray.rewards.batch import combine

        shared, num_rows = put(work), len(work.samples_B)
        values: dict[str, Sequence[float | None]] = {}
        if self.worker is not None:
            timeout_s = self.timeouts.reward_s + 30.0
            [of_worker] = await self.worker.call(RewardWorker.score, timeout_s=timeout_s)(shared)
            values.update(of_worker)
        if self.model is None:
            return combine(values, self.weights, num_rows=num_rows)
        ranks, call_s = self.model.actors, self.timeouts.call_s
        async with ranks.turn(timeout_s=call_s):
            answers = await ranks.call(RewardRank.score_with_model, timeout_s=call_s)(shared)
        modelled = by_row(work.plan, answers)
        values[MODEL] = [score.value for score in modelled]
        return [
            replace(score, is_cut=by_model.is_cut)
            for score, by_model in zip(
                combine(values, self.weights, num_rows=num_rows), modelled, strict=True
            )
        ]
