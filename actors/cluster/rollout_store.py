"""Rollouts in Ray's object store, for a driver that looks at them in full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from actors.cluster.deadline import within
from actors.cluster.role_handle import put
from rlhf_ray.roles.groups import Ref, RolloutGroup
from rlhf_ray.types import Rollout


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """What `rlhf_ray.roles.protocols.RolloutStore` asks for.

    Attributes:
        timeout_s: Deadline of a fetch.
    """

    timeout_s: float

    async def fetch(self, groups: Sequence[RolloutGroup]) -> list[list[Rollout]]:
        """The samples of groups; of a group without any, none.

        Raises:
            DeadlineError: They do not come.
            ResultsLost: They are gone with the node that held them.
        """
        there = [group for group in groups if group.summaries_G]
        if not there:
            return [[] for _ in groups]
        fetched = await within(
            [group.rollouts for group in there],
            timeout_s=self.timeout_s,
            actors=[f"the object store (draw {group.draw})" for group in there],
            operation="fetching rollouts",
        )
        rollouts_of = {
            (group.draw, rollout.sample): rollout
            for group, rollouts in zip(there, fetched, strict=True)
            for rollout in rollouts
        }
        return [[rollouts_of[sample] for sample in group.samples_G] for group in groups]

    def put(self, rollouts: Sequence[Rollout]) -> Ref:
        """Lay down a group's samples."""
        return put(list(rollouts))
