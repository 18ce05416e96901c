"""Roles whose actors died are started again: once for all that met the death, and so often alone.

Ray could restart actors by itself, but would run `__init__` again, on whatever it finds: without
process group, model and weights.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleSpec
from actors.pool.budget import Budget
from rlhf_ray.config.fault_tolerance import ActorFailureConfig, TimeoutConfig
from rlhf_ray.errors import ActorDied, RunError

logger = logging.getLogger(__name__)


class Restarts:
    """Starts roles again, or single actors of roles whose actors work each by itself.

    Attributes:
        budget: How often it may.
    """

    def __init__(
        self,
        config: ActorFailureConfig,
        restart: Callable[[str, Sequence[int] | None], Awaitable[None]],
    ) -> None:
        """`restart` gives a role new actors, or some of its ranks; it fails where one dies."""
        self.budget, self._restart = Budget(config), restart
        # By what is started again: a role, or an actor as `role/rank`.
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def longest_s(self, timeouts: TimeoutConfig) -> float:
        """How long it may take until one start succeeds or no other is allowed."""
        config = self.budget.config
        pause_s = self.budget.pause_s(config.restarts)
        return float(max(1, config.restarts) * (pause_s + 2 * timeouts.place_s + timeouts.start_s))

    @property
    def again_s(self) -> float | None:
        """When what could not be started may be tried again; None for never."""
        config = self.budget.config
        return config.stable_s if config.restarts else None

    async def after(self, died: ActorDied, roles: Mapping[str, RoleHandle[Any]]) -> None:
        """Have the role of a dead actor serve again, unless it does so since that actor died.

        Raises:
            ActorDied: It was started again as often as is allowed.
            RlhfRayError: It cannot be started.
        """
        role = died.role
        if role not in roles:
            raise died
        if died.incarnation is None or died.incarnation == roles[role].incarnation:
            spec: RoleSpec | None = roles[role].spec
            self._begin(role, died, None, is_free=spec is not None and spec.runs_user_code)
        await self._end_of(role)

    async def replace(self, died: ActorDied) -> None:
        """Have another actor in the place of one that is dead; its role's others work on.

        Each has a budget of its own.

        Raises:
            ActorDied: It was started again as often as is allowed.
            RlhfRayError: It cannot be started.
        """
        name = f"{died.role}/{died.index}"
        self._begin(name, died, [died.index])
        await self._end_of(name)

    def _begin(
        self, name: str, died: ActorDied, ranks: Sequence[int] | None, *, is_free: bool = False
    ) -> None:
        if name not in self._under_way:
            task = asyncio.create_task(self._again(name, died, ranks, is_free=is_free))
            self._under_way[name] = task
            task.add_done_callback(self._ended)

    async def _end_of(self, name: str) -> None:
        if (task := self._under_way.get(name)) is None:
            return
        try:
            # Whoever waits may be cancelled; others wait for the same.
            await asyncio.shield(task)
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if waiting is not None and waiting.cancelling():
                raise
            raise RunError(f"{name} was ended while it was started again") from None

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way = {name: other for name, other in self._under_way.items() if other != task}
        if not task.cancelled():
            task.exception()  # whoever waited has it; where nobody did, the next call meets it

    async def allow(self, died: ActorDied, name: str = "") -> None:
        """Wait as long as what died must, and no longer: its role, or an actor by its `name`.

        Raises:
            ActorDied: It was started again as often as is allowed.
        """
        name = name or died.role
        pause_s = self.budget.spend(name)
        if pause_s is None:
            config = self.budget.config
            if not config.restarts:
                raise died
            raise ActorDied.of(
                f"{died} ({name} was started again {config.restarts} times, and has not served "
                f"for {config.stable_s:g} s after any of them: failures.actor)",
                role=died.role,
                index=died.index,
                operation=died.operation,
                age_s=died.age_s,
            )
        await asyncio.sleep(pause_s)
        logger.warning("%s; %s is started again", died, name)

    async def _again(
        self, name: str, died: ActorDied, ranks: Sequence[int] | None, *, is_free: bool
    ) -> None:
        """Start again, and what is new may die as well; the first time is perhaps free."""
        with self.budget.starting(name, age_s=died.age_s):
            while True:
                if not is_free:
                    await self.allow(died, name)
                is_free = False
                try:
                    return await self._restart(died.role, ranks)
                except ActorDied as error:
                    if error.role != died.role:
                        raise
                    died = error

    async def end(self, role: str) -> None:
        """End what is under way for a role, or for actors of it, which is ended itself."""
        await self._cancel(
            task
            for name, task in self._under_way.items()
            if name == role or name.startswith(f"{role}/")
        )

    async def close(self) -> None:
        """End all that is under way."""
        await self._cancel(self._under_way.values())

    async def _cancel(self, under_way: Iterable[asyncio.Task[None]]) -> None:
        tasks = list(under_way)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
