"""Reward functions and remote scorers, which need no GPU: a process beside the reward's ranks."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from actors.ranks.forward import Pass
from actors.ranks.rank import Rank
from rlhf_ray.config.rewards import REMOTE
from rlhf_ray.rollouts.seeds import sample_seeds
from rlhf_ray.specs import RewardSpec
from rlhf_ray.types import Rollout

if TYPE_CHECKING:
    from rlhf_ray.rewards.batch import ScoringBatch
    from rlhf_ray.rewards.functions import RewardFunction
    from rlhf_ray.rewards.remote import RemoteScorer


class RewardWorker(Rank):
    """One process without a group; user code runs here, and in processes that it starts."""

    def import_libraries(self) -> None:
        """What scoring needs, before there is anything to score."""
        importlib.import_module("rlhf_ray.rewards.functions")
        importlib.import_module("torch")

    def load(self, spec: RewardSpec) -> dict[str, float]:
        """Make the functions and the remote scorer; returns each function's factor in the sum.

        Raises:
            ConfigError: One of them cannot be loaded.
        """
        from rlhf_ray.rewards.functions import load_functions
        from rlhf_ray.rewards.remote import RemoteScorer

        reward = spec.reward
        self.timeout_s = spec.timeout_s
        self.functions = load_functions(reward.functions, taken=reward.other_names)
        self.remote = RemoteScorer(reward.remote) if reward.remote.url else None
        return {function.name: function.weight for function in self.functions}

    def score(self, work: Pass) -> Mapping[str, Sequence[float | None]]:
        """Each scorer's values of all rows, by its name.

        Raises:
            RewardError: A scorer failed; never a reward of 0 in its place.
        """
        from rlhf_ray.rewards.batch import ScoringBatch

        rollouts = work.rows(self.fetch(work.refs))
        _seed_for(rollouts[0])
        scoring = ScoringBatch.from_rollouts(rollouts)
        # No coroutine may be a method here: Ray would then run every method in an event loop.
        return asyncio.run(_scores_of(scoring, self.functions, self.remote, self.timeout_s))


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
