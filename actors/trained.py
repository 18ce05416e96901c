"""What every trained role's group does beside its own work: tell, save, restore, export."""

from __future__ import annotations

from actors.actor_set import ActorSet
from rlhf_ray.config.base import LearnerConfig, TimeoutConfig
from rlhf_ray.roles import Hardware


class TrainedGroup:
    """A rank group whose ranks hold a learner."""

    def __init__(self, actors: ActorSet, learner: LearnerConfig, timeouts: TimeoutConfig) -> None:
        """Wrap started ranks with a loaded learner."""
        self.actors, self.config, self.timeouts = actors, learner, timeouts

    async def hardware(self) -> Hardware:
        """What the role's utilisation is counted from."""
        found: Hardware = await self.actors.call_one(0, "hardware", timeout_s=self.timeouts.start_s)
        return found

    async def save(self, folder: str) -> None:
        """Write this role's trained state below `folder`."""
        await self.actors.call("save", folder, timeout_s=self.timeouts.call_s)

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        await self.actors.call("restore", folder, timeout_s=self.timeouts.call_s)

    async def export(self, folder: str, tokenizer_path: str) -> None:
        """Write the model in the transformers layout."""
        await self.actors.call("export", folder, tokenizer_path, timeout_s=self.timeouts.call_s)
