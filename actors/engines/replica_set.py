"""The rollout role as the loop sees it: independent replicas, requests spread by load."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actors.cluster.role import RoleHandle
from actors.engines.dispatch import LeastLoaded
from actors.engines.ending import Ending
from rlhf_ray.roles import EnginePart, GenerationRequest, RolloutBatch, Shard, SleepLevel


class ReplicaSet:
    """The rollout role: replicas side by side, the least loaded one first."""

    def __init__(
        self, actors: RoleHandle[Any], ending: Ending, *, timeout_s: float, sleeps: bool
    ) -> None:
        """Wrap started replicas.

        Args:
            actors: The replicas.
            ending: What ends a response.
            timeout_s: Deadline of one call to `generate`.
            sleeps: Whether they live on GPUs that another role needs between rollouts.
        """
        self.actors, self.ending = actors, ending
        self.timeout_s, self.sleeps = timeout_s, sleeps
        self._load = LeastLoaded(len(actors))

    async def generate(self, requests: Sequence[GenerationRequest]) -> RolloutBatch:
        """Sample every request, after waking up; rows come by requests, then samples."""
        await self.wake_up()
        costs = [
            (len(request.prompt.token_ids_T) + request.max_new_tokens) * len(request.seeds_G)
            for request in requests
        ]
        first_rows = np.cumsum([0, *(len(request.seeds_G) for request in requests)])
        replica_of = self._load.assign(costs)
        calls = []
        for replica in sorted(set(replica_of)):
            mine = [i for i, assigned in enumerate(replica_of) if assigned == replica]
            rows = [int(r) for i in mine for r in range(first_rows[i], first_rows[i + 1])]
            method = self.actors.actors[replica].generate.options(num_returns=2)
            summaries, rollouts = method.remote(
                [requests[i] for i in mine], self.ending, self.timeout_s
            )
            calls.append((replica, mine, rows, summaries, rollouts))
        try:
            answers = await self.actors.answers(
                [summaries for _, _, _, summaries, _ in calls],
                "generate",
                timeout_s=self.timeout_s,
                indices=[replica for replica, *_ in calls],
            )
        finally:
            for replica, mine, *_ in calls:
                self._load.finished(replica, sum(costs[i] for i in mine))
        summaries_B: list[Any] = [None] * int(first_rows[-1])
        for (_, _, rows, _, _), answer in zip(calls, answers, strict=True):
            for row, summary in zip(rows, answer, strict=True):
                summaries_B[row] = summary
        return RolloutBatch(
            summaries_B=tuple(summaries_B),
            shards=tuple(
                Shard(ref=rollouts, rows=tuple(rows)) for _, _, rows, _, rollouts in calls
            ),
        )

    async def sleep(self, level: SleepLevel) -> None:
        """Between rollouts, where GPUs are shared."""
        if self.sleeps:
            await self.actors.call("sleep", level, self.timeout_s, timeout_s=self.timeout_s)

    async def wake_up(self, part: EnginePart | None = None) -> None:
        """Before weights or requests come, where GPUs are shared."""
        if self.sleeps:
            await self.actors.call("wake_up", part, self.timeout_s, timeout_s=self.timeout_s)
