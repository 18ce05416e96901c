"""Roles whose actors died are started again: once for all that met the death, and so often alone.

Ray could restart actors by itself, but would run `__init__` again, on whatever it finds: without
process group, model and weights.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.cluster.role_spec import RoleSpec
from actors.pool.budget import Budget
from rlhf_ray.config.base import ActorFailureConfig
from rlhf_ray.errors import ActorDied

logger = logging.getLogger(__name__)


class Restarts:
    """Starts roles again.

    Attributes:
        budget: How often it may.
    """

    def __init__(
        self, config: ActorFailureConfig, restart: Callable[[str], Awaitable[None]]
    ) -> None:
        """`restart` gives a role new actors, and fails where one of these dies."""
        self.budget, self._restart = Budget(config), restart
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def after(self, died: ActorDied, roles: Mapping[str, RoleHandle[Any]]) -> None:
        """Have the role of a dead actor serve again, unless it does so since that actor died.

        Raises:
            ActorDied: It was started again as often as is allowed.
            RlhfRayError: It cannot be started.
        """
        role = died.role
        if role not in roles:
            raise died
        is_new = died.incarnation is None or died.incarnation == roles[role].incarnation
        if role not in self._under_way and is_new:
            spec: RoleSpec | None = roles[role].spec
            is_free = spec is not None and spec.runs_user_code
            task = asyncio.create_task(self._again(died, is_free=is_free))
            self._under_way[role] = task
            task.add_done_callback(self._ended)
        if role in self._under_way:
            # Whoever waits may be cancelled; others wait for the same.
            await asyncio.shield(self._under_way[role])

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way = {role: other for role, other in self._under_way.items() if other != task}
        if not task.cancelled():
            task.exception()  # whoever waited has it; where nobody did, the next call meets it

    async def allow(self, died: ActorDied) -> None:
        """Wait as long as a role that died must, and no longer.

        Raises:
            ActorDied: It was started again as often as is allowed.
        """
        pause_s = self.budget.spend(died.role)
        if pause_s is None:
            config = self.budget.config
            if not config.restarts:
                raise died
            raise ActorDied.of(
                f"{died} ({died.role} was started again {config.restarts} times, each within "
                f"{config.stable_s:g} s of the one before: failures.actor)",
                role=died.role,
                index=died.index,
                operation=died.operation,
                age_s=died.age_s,
            )
        await asyncio.sleep(pause_s)
        logger.warning("%s; %s is started again", died, died.role)

    async def _again(self, died: ActorDied, *, is_free: bool) -> None:
        """Start a role again, whose new actors may die as well; the first time is perhaps free."""
        while True:
            if not is_free:
                await self.allow(died)
            is_free = False
            try:
                await self._restart(died.role)
            except ActorDied as error:
                if error.role != died.role:
                    raise
                died = error
            else:
                return

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
