"""A group of ranks as the pool and the loop see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from actors.cluster.role_handle import RoleHandle
from actors.ranks.hosting import HostingRank
from actors.ranks.rank import Rank
from rlhf_ray.config.base import TimeoutConfig

R = TypeVar("R", bound=HostingRank)


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """Ranks in one process group, on GPUs in turn with others, or on CPUs."""

    actor_class: type[Rank]
    beside: str = ""
    max_calls: int | None = None
    reserves_memory: bool = False

    def argument(self, timeouts: TimeoutConfig) -> float:
        """How long a rank waits for what lies in the object store, in seconds."""
        return timeouts.call_s

    async def join(self, role: RoleHandle[Any], *, on_gpu: bool, timeouts: TimeoutConfig) -> None:
        """Make the ranks one process group."""
        start_s = timeouts.start_s
        [(host, port)] = await role.call(Rank.open_store, only=0, timeout_s=start_s)(start_s)
        refs = [
            role.start(Rank.join, rank)(rank, len(role), host, port, timeouts.call_s, on_gpu)
            for rank in range(len(role))
        ]
        await role.answers(refs, "join", timeout_s=start_s)

    async def leave_gpus(self, role: RoleHandle[Any], *, timeout_s: float) -> bool:
        """They hold nothing there without a model."""
        return True

    async def check(self, role: RoleHandle[Any], *, timeout_s: float) -> None:
        """Ranks that answer can serve."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec(RankSpec):
    """Processes without a group, which work by themselves."""

    async def join(self, role: RoleHandle[Any], *, on_gpu: bool, timeouts: TimeoutConfig) -> None:
        """Nobody to join."""


class RankGroup(Generic[R]):
    """A role on a group of ranks, as the loop asks it."""

    def __init__(self, actors: RoleHandle[R], timeouts: TimeoutConfig, *, leaves: bool) -> None:
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
            await self.actors.call(HostingRank.offload, timeout_s=self.timeouts.call_s)()
