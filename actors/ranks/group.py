"""What the group of any role does: leave the GPUs that engines share with it."""

from __future__ import annotations

from actors.cluster.actor_set import ActorSet
from rlhf_ray.config.base import TimeoutConfig


class RankGroup:
    """A role on a group of ranks."""

    def __init__(self, actors: ActorSet, timeouts: TimeoutConfig, *, leaves: bool) -> None:
        """Wrap started ranks with a loaded model.

        Args:
            actors: The ranks.
            timeouts: Of every call.
            leaves: Whether they live on the engines' GPUs.
        """
        self.actors, self.timeouts, self.leaves = actors, timeouts, leaves

    async def offload(self) -> None:
        """Leave the engines' GPUs for the host; nothing where these are not theirs."""
        if self.leaves:
            await self.actors.call("offload", timeout_s=self.timeouts.call_s)
