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
        """The samples of groups.

        Raises:
            DeadlineError: They do not come.
            RunError: They are lost, with the node that held them.
        """
        fetched = await within(
            [group.rollouts for group in groups],
            timeout_s=self.timeout_s,
            actors=[f"the object store (draw {group.draw})" for group in groups],
            operation="fetching rollouts",
        )
        found = []
        for group, rollouts in zip(groups, fetched, strict=True):
            by_sample = {rollout.sample: rollout for rollout in rollouts}
            found.append([by_sample[summary.sample] for summary in group.summaries_G])
        return found

    def put(self, rollouts: Sequence[Rollout]) -> Ref:
        """Lay down a group's samples."""
        return put(list(rollouts))
