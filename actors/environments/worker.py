"""A process that users' environments run in, and what the pool knows of such processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.cluster.network import use_cluster_network
from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import ActorUsage, RoleSpec, control
from rlhf_ray.deadlines import side_by_side
from rlhf_ray.environments.protocol import Step
from rlhf_ray.environments.sessions import Sessions
from rlhf_ray.errors import ActorDied
from rlhf_ray.metrics.usage import peak_memory_gb
from rlhf_ray.specs import EnvironmentSpec
from rlhf_ray.types import Prompt

# An event loop that user code blocks for longer is of no use to the other rollouts on it.
RESPOND_S = 10.0


class EnvironmentWorker:
    """Sessions of rollouts, which all have this process's event loop.

    Engines ask it for turns; the driver loads it and looks after it.
    """

    sessions: Sessions | None = None
    spec: EnvironmentSpec | None = None

    def __init__(self, name: str, environment: Mapping[str, str], idle_s: float) -> None:
        """Nothing is loaded; nobody asks a session again after `idle_s`."""
        os.environ.update(environment)
        use_cluster_network()
        logging.basicConfig(level=logging.INFO)
        self.name, self.idle_s = name, idle_s

    def import_libraries(self) -> None:
        """What the user's code needs, nobody knows."""

    async def load(self, spec: EnvironmentSpec, held: Sequence[Any] = ()) -> None:
        """Read the user's code, and make an environment of it once.

        It is loaded already where another worker was started again: then sessions go on.

        Raises:
            ConfigError: It cannot be made.
        """
        from rlhf_ray.environments.loading import environment_maker
        from rlhf_ray.environments.protocol import message_roles
        from rlhf_ray.rewards.loading import forget_files

        if spec == self.spec:
            return
        await self.drop_sessions()
        forget_files()
        config = spec.environment
        make = environment_maker(config)
        self.sessions = Sessions(
            make,
            roles=message_roles(make()) if config.template == "checked" else (),
            timeout_s=config.timeout_s,
            idle_s=self.idle_s,
        )
        self.spec = spec

    async def open(self, name: str, draw: int, sample: int, prompt: Prompt, seed: int) -> None:
        """As `Sessions.open`."""
        await self._loaded.open(name, draw, sample, prompt, seed)

    async def step(self, name: str, answer: str) -> Step:
        """As `Sessions.step`."""
        return await self._loaded.step(name, answer)

    async def close(self, name: str) -> None:
        """As `Sessions.close`."""
        await self._loaded.close(name)

    async def drop_sessions(self) -> None:
        """End what a job has left; the next one has the user's code read anew."""
        if self.sessions is not None:
            await self.sessions.close_all()
        self.spec = None

    async def responds(self) -> None:
        """That user code does not block the event loop."""

    @property
    def _loaded(self) -> Sessions:
        assert self.sessions is not None, "an environment must be loaded"
        return self.sessions

    @control
    async def health(self) -> None:
        """That this process is alive."""

    @control
    async def usage(self) -> ActorUsage:
        """What it needed."""
        return ActorUsage.of_process({"peak_gb": peak_memory_gb()})

    def process_id(self) -> int:
        """Of this actor."""
        return os.getpid()

    async def stop(self) -> None:
        """Close what is open."""
        await self.drop_sessions()


@dataclass(frozen=True, kw_only=True)
class EnvironmentWorkers(RoleSpec):
    """Workers, of which each works for itself."""

    actor_class: type[EnvironmentWorker] = EnvironmentWorker
    # Each rollout may have a call that waits.
    max_calls: int | None = 100_000
    runs_user_code: bool = True

    async def broken(self, role: RoleHandle[Any]) -> Sequence[int]:
        """Those that are dead, and those whose event loop is blocked."""
        indices = range(len(role))
        respond = await side_by_side(_responds(role, index) for index in indices)
        return [index for index in indices if not respond[index]]

    async def check(self, role: RoleHandle[Any], *, timeout_s: float) -> None:
        """Sessions of the last job end.

        Raises:
            RunError: A worker does not answer.
        """
        await role.call(EnvironmentWorker.drop_sessions, timeout_s=timeout_s)()


async def _responds(role: RoleHandle[EnvironmentWorker], index: int) -> bool:
    try:
        await role.call(EnvironmentWorker.responds, timeout_s=RESPOND_S, only=index)()
    except ActorDied:  # or late, and killed for it
        return False
    return True
