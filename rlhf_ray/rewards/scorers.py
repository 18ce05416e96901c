"""All scorers of a job but its reward model: what one process asks about one group at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from rlhf_ray.config.rewards import JUDGE
from rlhf_ray.deadlines import DeadlineError, deadline, side_by_side
from rlhf_ray.rewards.batch import RewardError, Scores, ScoringBatch
from rlhf_ray.rewards.functions import load_functions
from rlhf_ray.rewards.judge import Judge
from rlhf_ray.rewards.remote import RemoteScorer
from rlhf_ray.specs import RewardSpec
from rlhf_ray.types import Rollout


class Scorers:
    """Reward functions and services. All methods are for one event loop.

    Async functions and requests work side by side, also for several groups. Plain functions work
    one after the other, each behind its own seed: the generators of random numbers are the
    process's.

    Attributes:
        functions: By name, in the order of the configuration.
        timeout_s: What each has for a group.
    """

    def __init__(self, spec: RewardSpec) -> None:
        """Load them.

        Raises:
            ConfigError: One of them cannot be loaded.
        """
        reward = spec.reward
        functions = load_functions(reward.functions, taken=reward.other_names)
        self.functions = {function.name: function for function in functions}
        self.timeout_s = spec.timeout_s
        self.remote = RemoteScorer(reward.remote) if reward.remote.url else None
        self.judge = Judge(reward.judge) if reward.judge.url else None
        self._plain_lock = asyncio.Lock()

    async def score(
        self, seeds: Mapping[str, int], rollouts_G: Sequence[Rollout]
    ) -> dict[str, Scores]:
        """What some scorers say of a group: name -> one value a sample.

        Args:
            seeds: Of each of them, by its name.
            rollouts_G: The samples.

        Raises:
            RewardError: One failed; names it and the group. Never a reward of 0 in its place.
        """
        first, batch = rollouts_G[0], ScoringBatch.from_rollouts(rollouts_G)
        try:
            values = await side_by_side(self._score(*named, batch) for named in seeds.items())
        except RewardError as error:
            where = f"draw {first.draw}, prompt {first.prompt.prompt_id!r}"
            raise RewardError.of(f"{error} ({where})", cause=error.cause) from error
        return dict(zip(seeds, values, strict=True))

    async def _by_service(self, name: str, seed: int, batch: ScoringBatch) -> Scores:
        if name == JUDGE:
            assert self.judge is not None, "there is no judge"
            return await self.judge.score(seed, batch)
        assert self.remote is not None, f"no scorer {name!r}"
        return await self.remote.score(batch)

    async def _score(self, name: str, seed: int, batch: ScoringBatch) -> Scores:
        function = self.functions.get(name)
        if function is None:
            return await self._by_service(name, seed, batch)
        if function.is_async:
            return await function.score(batch, timeout_s=self.timeout_s)
        # Whoever asks lets one group through at a time; what it gave up may still be in the way.
        wait_s = len(self.functions) * self.timeout_s
        try:
            async with deadline(wait_s, actor="functions before it", operation=name):
                await self._plain_lock.acquire()
        except DeadlineError as error:
            raise RewardError.of(str(error), cause="hung") from error
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            return await function.score(batch, timeout_s=self.timeout_s)
        finally:
            self._plain_lock.release()
