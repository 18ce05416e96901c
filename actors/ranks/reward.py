"""Rewards: functions, a model, a remote scorer, behind one role."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from actors.cluster.role import RoleHandle, put
from actors.ranks.forward import Pass, by_row, rows_of
from actors.ranks.group import RankGroup
from actors.ranks.hosting import HostingRank
from actors.ranks.rank import free_memory
from actors.weights.held_model import HeldModel, in_reach
from rlhf_ray.config.base import TimeoutConfig
from rlhf_ray.config.rewards import MODEL, REMOTE, RewardConfig, RewardModelConfig
from rlhf_ray.packing import RankedMicroBatches
from rlhf_ray.roles import RolloutGroup
from rlhf_ray.rollouts.seeds import sample_seeds
from rlhf_ray.specs import RewardSpec
from rlhf_ray.types import Ranking, Rollout, Score

if TYPE_CHECKING:
    from rlhf_ray.models.reward_scorer import ModelScore
    from rlhf_ray.rewards.batch import ScoringBatch
    from rlhf_ray.rewards.functions import RewardFunction
    from rlhf_ray.rewards.remote import RemoteScorer


class RewardRank(HostingRank):
    """One rank of the reward's group: each scores its rows with the model, rank 0 does the rest.

    It also trains reward models, as any rank hosts any learner.

    Attributes:
        model: What scores; None without a reward model.
    """

    model: Any = None

    def load(self, spec: Any, held: Sequence[HeldModel] = ()) -> None:
        """Make the scorers that a `RewardSpec` names, or host a learner.

        The model that was trained here scores as it stands, if it is the one that is asked for.

        Raises:
            ConfigError: One of them cannot be loaded.
        """
        if not isinstance(spec, RewardSpec):
            super().load(spec, held)
            return
        from rlhf_ray.rewards.functions import load_functions
        from rlhf_ray.rewards.remote import RemoteScorer

        reward = spec.reward
        self.timeout_s = spec.timeout_s
        self.functions = load_functions(reward.functions, taken=reward.other_names)
        self.remote = RemoteScorer(reward.remote) if reward.remote.url else None
        trained = self._trained_here(reward.model)
        self.unload()
        if reward.model.path:
            from rlhf_ray.learner.residency import Residency
            from rlhf_ray.models.reward_scorer import RewardScorer

            with in_reach(held, timeout_s=self.fetch_timeout_s):
                self.model = RewardScorer(
                    reward.model,
                    device=self.device,
                    model=trained,
                    vocabulary=spec.vocabulary,
                    end_ids=spec.end_token_ids,
                )
            self.residency = Residency(self.model, self.device)
        free_memory()

    def _trained_here(self, model: RewardModelConfig) -> Any:
        """The module that was trained here for the path of `model`, if whole and in its dtype."""
        if not model.path or model.path != self.learner_path:
            return None
        from rlhf_ray.models.load import resolve_dtype

        job, trained = self.learner.job, self.learner.model
        same = (
            job.reward.zero.stage < 3
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

    def score_answers(
        self, rows: Sequence[Ranking], plan: RankedMicroBatches
    ) -> list[tuple[float, ...]]:
        """Scores by the model in training, of all rows' answers on every rank."""
        scores: list[tuple[float, ...]] = self._to_read().scores(rows, plan)
        return scores

    def score_with_model(self, work: Pass) -> list[ModelScore]:
        """The model's scores of this rank's rows, in the order in which the plan names them."""
        rollouts = work.rows(self.fetch(work.refs))
        self._to_read()
        mine = [rollouts[row] for row in rows_of(work.plan[self.rank])]
        scores: list[ModelScore] = self.model.score(mine)
        return scores

    def score_with_functions(self, work: Pass) -> Mapping[str, Sequence[float | None]]:
        """The functions' and the remote scorer's scores of all rows, by name.

        Raises:
            RewardError: A scorer failed; never a reward of 0 in its place.
        """
        from rlhf_ray.rewards.batch import ScoringBatch

        rollouts = work.rows(self.fetch(work.refs))
        _seed_for(rollouts[0])
        scoring = ScoringBatch.from_rollouts(rollouts)
        # No coroutine may be a method here: Ray would then run every method in an event loop.
        return asyncio.run(_scores_of(scoring, self.functions, self.remote, self.timeout_s))

    def weights(self, reward: RewardConfig) -> dict[str, float]:
        """Factor of each scorer in the sum."""
        weights = {function.name: function.weight for function in self.functions}
        if reward.model.path:
            weights[MODEL] = reward.model.weight
        if self.remote is not None:
            weights[REMOTE] = reward.remote.weight
        return weights


def _seed_for(first: Rollout) -> None:
    """Functions that draw random numbers draw the same ones for the same batch, resumed or not."""
    import numpy as np
    import torch

    [seed] = sample_seeds(
        seed=int(first.versions_T.max()),
        draw=f"reward/{first.draw}",
        prompt_id=first.prompt.prompt_id,
        num_samples=1,
    )
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


async def _scores_of(
    batch: ScoringBatch,
    functions: Sequence[RewardFunction],
    remote: RemoteScorer | None,
    timeout_s: float,
) -> dict[str, Sequence[float | None]]:
    calls = {function.name: function.score(batch, timeout_s=timeout_s) for function in functions}
    if remote is not None:
        calls[REMOTE] = remote.score(batch)
    return dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))


class RewardGroup(RankGroup[RewardRank]):
    """The reward role on a group of ranks."""

    def __init__(
        self,
        actors: RoleHandle[RewardRank],
        reward: RewardConfig,
        timeouts: TimeoutConfig,
        *,
        leaves: bool = False,
    ) -> None:
        """Wrap started ranks with loaded scorers; `leaves` as in any `RankGroup`."""
        super().__init__(actors, timeouts, leaves=leaves)
        self.reward = reward

    async def read_weights(self) -> None:
        """Ask for the factor of each scorer; once they are loaded."""
        ask = self.actors.call(RewardRank.weights, only=0, timeout_s=self.timeouts.start_s)
        [self.weights] = await ask(self.reward)

    async def score(self, groups: Sequence[RolloutGroup]) -> Sequence[tuple[Score, ...]]:
        """One tuple a group, with a score a sample.

        Raises:
            RunError: A scorer failed; names it and the cause.
        """
        work = Pass.over(
            groups,
            num_ranks=len(self.actors),
            max_tokens_per_micro_batch=self.reward.model.max_tokens_per_micro_batch,
            padded=True,
        )
        scores_B = iter(await self._score(work))
        return [tuple(islice(scores_B, len(group.summaries_G))) for group in groups]

    async def _score(self, work: Pass) -> Sequence[Score]:
        from rlhf_ray.rewards.combine import combine

        ref, num_rows = put(work), len(work.samples_B)
        # Not in the model's turn, which others may wait for; rank 0 does one at a time anyway.
        timeout_s = self.timeouts.reward_s + 30.0
        score = self.actors.call(RewardRank.score_with_functions, only=0, timeout_s=timeout_s)
        [values] = await score(ref)
        if not self.reward.model.path:
            return combine(values, self.weights, num_rows=num_rows)
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            answers = await self.actors.call(RewardRank.score_with_model, timeout_s=call_s)(ref)
        modelled = by_row(work.plan, answers)
        values = {**values, MODEL: [score.value for score in modelled]}
        return [
            replace(score, is_cut=by_model.is_cut)
            for score, by_model in zip(
                combine(values, self.weights, num_rows=num_rows), modelled, strict=True
            )
        ]
