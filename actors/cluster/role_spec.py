"""What a role's actors are, as far as the pool needs to know it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import ray

from actors.cluster.role_handle import Answer, RoleHandle
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.metrics.spans import PROCESS, Taken

M = TypeVar("M", bound=Callable[..., Any])

# Calls that an actor answers beside its work run in threads of their own.
CONTROL_GROUP, CONTROL_THREADS = "control", 2


def control(method: M) -> M:
    """Mark a method of an actor's class: it is answered also while the actor works."""
    marked: M = ray.method(concurrency_group=CONTROL_GROUP)(method)
    return marked


@dataclass(frozen=True, kw_only=True)
class ActorUsage:
    """What an actor needed and did since the last time that it was asked.

    Attributes:
        figures: By the names that `usage_of` knows.
        node: The name of its machine.
        clock: Tells the clock of `taken` from those of other machines.
        taken: Its spans.
    """

    figures: Mapping[str, float]
    node: str
    clock: str
    taken: Taken

    @classmethod
    def of_process(cls, figures: Mapping[str, float]) -> ActorUsage:
        """Of this one."""
        return cls(figures=figures, node=os.uname().nodename, clock=clock(), taken=PROCESS.take())


def clock() -> str:
    """The name of this process's monotonic clock: it runs from the start of its machine."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else os.uname().nodename


class RoleActor(Protocol):
    """What the pool asks of any role's actor."""

    def process_id(self) -> int:
        """Of the actor."""

    def health(self) -> Answer[Any]:
        """That it is alive, also while it works."""

    def usage(self) -> Answer[ActorUsage]:
        """What it needed and did since the last time."""

    def stop(self) -> Answer[None]:
        """Leave nothing behind; the process is ended next."""


@dataclass(frozen=True, kw_only=True)
class RoleSpec:
    """What a role's actors are and what they start with; the pool knows no more of a role.

    As it stands: processes that work each by itself. Actors of one specification serve wherever an
    equal one is asked for.

    Attributes:
        actor_class: A plain class; its objects are made from a name, an environment and `argument`.
        max_calls: How many calls run at a time, of coroutines or in threads; None for Ray's
            default, which is one thread.
        reserves_memory: Whether it takes its GPUs' memory when it starts, instead of computing in
            turn.
        works_beside: Whether it computes while other roles do: on CPUs both then have fewer cores.
            That is the job's; the same actors serve either way.
        runs_user_code: Whether its actors run code that may end them. They never wait for a turn,
            and are started again as often as it takes: whoever asks them counts that.
    """

    actor_class: type[RoleActor]
    max_calls: int | None = None
    reserves_memory: bool = False
    works_beside: bool = field(default=False, compare=False)
    runs_user_code: bool = False

    def argument(self, timeouts: TimeoutConfig) -> Any:
        """The third of what an actor is made from: seconds to wait for what others leave to it."""
        return timeouts.call_s

    async def join(
        self,
        role: RoleHandle[Any],
        *,
        new: Sequence[int],
        on_gpu: bool,
        timeouts: TimeoutConfig,
    ) -> None:
        """Make started actors ready for work, together; all of them are `new`, or some."""

    async def broken(self, role: RoleHandle[Any]) -> Sequence[int]:
        """Which actors have to be replaced where one of them died; a single one is the one."""
        return [0]

    async def leave_gpus(self, role: RoleHandle[Any], *, timeout_s: float) -> bool:
        """Leave GPUs that the next job uses for others; False where only its end frees them."""
        return True

    async def check(self, role: RoleHandle[Any], *, timeout_s: float) -> None:
        """Make sure that actors that answer can serve the next job, and drop what the last left.

        Raises:
            RunError: They cannot.
        """
