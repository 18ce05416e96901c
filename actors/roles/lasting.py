"""Roles that outlive their actors: a call that meets a death is repeated, or says what is lost.

A role without a state of its own (reference, reward, experience) answers the repeated call as if
nothing had happened. What was trained is gone with the actors that held it: whoever asked for it is
told so, until it has been restored. Engines see to themselves (`actors/engines/replacement.py`).
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import Any, TypeVar

from actors.cluster.role_handle import RoleHandle
from actors.pool.pool import Pool
from rlhf_ray.errors import ActorDied, StateLost

T = TypeVar("T")


async def repeated(pool: Pool, call: Callable[[], Awaitable[T]]) -> T:
    """What comes of a call, made again after a death that it met.

    Raises:
        ActorDied: A role was started again as often as is allowed.
    """
    while True:
        try:
            return await call()
        except ActorDied as died:
            await pool.restarts.after(died, pool.state.roles)


class Lasting:
    """A role whose calls are repeated; all else is the role's own."""

    def __init__(self, role: Any, pool: Pool) -> None:
        """Stand for `role`, on a pool that starts its actors again."""
        vars(self).update(_role=role, _pool=pool)

    def __getattr__(self, name: str) -> Any:
        """What the role has, with its coroutines made to last."""
        found = getattr(self._role, name)
        if not inspect.iscoroutinefunction(found):
            return found

        @wraps(found)
        async def call(*arguments: Any, **keywords: Any) -> Any:
            return await self.lasts(partial(found, *arguments, **keywords))

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        """On the role itself."""
        setattr(self._role, name, value)

    async def lasts(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call to the role, whatever has to be done for that."""
        return await repeated(self._pool, call)


class LastingTrained(Lasting):
    """A role that is trained: its state is that of the actors which were loaded or restored."""

    def __init__(self, role: Any, pool: Pool) -> None:
        """As any role; its model was just loaded."""
        super().__init__(role, pool)
        vars(self)["_incarnation"] = role.actors.incarnation

    async def lasts(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call to the role with the state that it has.

        Raises:
            StateLost: It has none; others have come in the place of its actors.
        """
        role: RoleHandle[Any] = self._role.actors
        if role.incarnation != self._incarnation:
            raise StateLost.named(role.name, "it was started again")
        return await or_lost(self._pool, call)

    async def restore(self, folder: str) -> None:
        """Read what `save` wrote; from nowhere, begin as the job began.

        Raises:
            StateLost: It died meanwhile.
        """
        role: RoleHandle[Any] = self._role.actors
        incarnation = role.incarnation
        if folder:
            await or_lost(self._pool, partial(self._role.restore, folder))
        elif incarnation == self._incarnation:  # else its actors have begun so
            await or_lost(self._pool, partial(self._pool.load_again, role.name))
        vars(self)["_incarnation"] = incarnation


async def or_lost(pool: Pool, call: Callable[[], Awaitable[T]]) -> T:
    """What comes of a call, which cannot be repeated.

    Raises:
        StateLost: An actor died, and serves again without its state.
        ActorDied: It was started again as often as is allowed.
    """
    try:
        return await call()
    except ActorDied as died:
        met_s = time.monotonic()
        await pool.restarts.after(died, pool.state.roles)
        raise StateLost.of(died, met_s=met_s) from died


class LastingPolicy(LastingTrained):
    """The policy, which publishes to engines; the rollout role sees to these by itself."""

    async def restore(self, folder: str) -> None:
        """As any trained role; the next publication opens the way to the engines again."""
        await super().restore(folder)
        self._role.disconnected()
