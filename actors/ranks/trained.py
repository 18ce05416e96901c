"""What every trained role's group does beside its own work: update, save, restore, export."""

from __future__ import annotations

from pathlib import Path

from actors.cluster.exports import export
from actors.cluster.role_handle import RoleHandle
from actors.cluster.run_files import RunFiles
from actors.ranks.group import R, RankGroup
from actors.ranks.hosting import HostingRank
from rlhf_ray.config.base import LearnerConfig, TimeoutConfig
from rlhf_ray.packing import UpdatePlan
from rlhf_ray.roles import Hardware, Metrics, Ref

SHARED = RunFiles()


class TrainedGroup(RankGroup[R]):
    """A rank group whose ranks hold a learner."""

    def __init__(
        self,
        actors: RoleHandle[R],
        learner: LearnerConfig,
        timeouts: TimeoutConfig,
        files: RunFiles = SHARED,
        *,
        exports_with: str = "",
        leaves: bool = False,
    ) -> None:
        """Wrap started ranks with a loaded learner.

        Args:
            actors: The ranks.
            learner: What they were loaded with.
            timeouts: Of every call.
            files: How what they write comes to the driver, where its folders are not theirs.
            exports_with: The tokenizer of the model that `save` exports as well; else empty.
            leaves: Whether they live on the engines' GPUs.
        """
        super().__init__(actors, timeouts, leaves=leaves)
        self.config, self.files, self.exports_with = learner, files, exports_with

    async def _update(self, rows: Ref, plan: UpdatePlan, *coefficients: float) -> Metrics:
        """Every optimiser step of a plan; what only training needs leaves shared GPUs with it.

        Another role that trains there has no room for its own beside.
        """
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            update = self.actors.call(HostingRank.update, timeout_s=call_s)
            metrics = await update(rows, plan, *coefficients)
            if self.leaves:
                await self.actors.call(HostingRank.offload, timeout_s=call_s)(keep_weights=True)
        return metrics[0]

    async def hardware(self) -> Hardware:
        """What the role's utilisation is counted from."""
        start_s = self.timeouts.start_s
        [hardware] = await self.actors.call(HostingRank.hardware, only=0, timeout_s=start_s)()
        return hardware

    async def save(self, folder: str) -> None:
        """Write this role's trained state below `folder`, on the driver's machine as well.

        An export goes to `export` beside it.
        """
        call_s = self.timeouts.call_s
        await self.files.clear(folder)  # what a run that broke off may have left there
        await self.actors.call(HostingRank.save, timeout_s=call_s)(folder)
        await self.files.fetch(folder)
        await self.files.clear(folder)
        if self.exports_with:
            beside = str(Path(folder).with_name("export"))
            await export(self.actors, self.files, beside, self.exports_with, timeout_s=call_s)
            await self.files.clear(beside)
        await self.offload()

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote."""
        await self.files.send(folder)
        call_s = self.timeouts.call_s
        async with self.actors.turn(timeout_s=call_s):
            await self.actors.call(HostingRank.restore, timeout_s=call_s)(folder)
        await self.offload()
        await self.files.clear(folder)
