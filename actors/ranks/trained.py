"""What every trained role's group does beside its own work: tell, save, restore, export."""

from __future__ import annotations

from pathlib import Path

from actors.cluster.actor_set import ActorSet
from actors.cluster.exports import export
from actors.cluster.run_files import RunFiles
from rlhf_ray.config.base import LearnerConfig, TimeoutConfig
from rlhf_ray.roles import Hardware

SHARED = RunFiles()


class TrainedGroup:
    """A rank group whose ranks hold a learner."""

    def __init__(
        self,
        actors: ActorSet,
        learner: LearnerConfig,
        timeouts: TimeoutConfig,
        files: RunFiles = SHARED,
        *,
        exports_with: str = "",
    ) -> None:
        """Wrap started ranks with a loaded learner.

        Args:
            actors: The ranks.
            learner: What they were loaded with.
            timeouts: Of every call.
            files: How what they write comes to the driver, where its folders are not theirs.
            exports_with: The tokenizer of the model that `save` exports as well; else empty.
        """
        self.actors, self.config, self.timeouts, self.files = actors, learner, timeouts, files
        self.exports_with = exports_with

    async def hardware(self) -> Hardware:
        """What the role's utilisation is counted from."""
        found: Hardware = await self.actors.call_one(0, "hardware", timeout_s=self.timeouts.start_s)
        return found

    async def save(self, folder: str) -> None:
        """Write this role's trained state below `folder`, on the driver's machine as well.

        An export goes to `export` beside it.
        """
        call_s = self.timeouts.call_s
        await self.files.clear(folder)  # what a run that broke off may have left there
        await self.actors.call("save", folder, timeout_s=call_s)
        await self.files.fetch(folder)
        await self.files.clear(folder)
        if self.exports_with:
            beside = str(Path(folder).with_name("export"))
            await export(self.actors, self.files, beside, self.exports_with, timeout_s=call_s)
            await self.files.clear(beside)

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        await self.files.send(folder)
        await self.actors.compute("restore", folder, timeout_s=self.timeouts.call_s)
        await self.files.clear(folder)
