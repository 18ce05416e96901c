"""Actors that hang are killed: so they are dead, and what follows is what follows a death."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from actors.cluster.death import death_of
from actors.cluster.role_handle import Listener, RoleHandle
from actors.cluster.role_spec import RoleActor
from actors.pool.health import Health
from actors.pool.pool import Pool

logger = logging.getLogger(__name__)

# Answers that an actor may miss before it gets no new work.
MISSED = 2


@dataclass
class _Watched:
    """An actor with what is open of it; nothing once it is dead.

    Attributes:
        listener: Who listened when it was asked. What it says is of that time: one that starts has
            no engine yet, which whoever comes once it is started must not take for a fault.
    """

    actor: Any
    health: Health
    question: Any = None
    listener: Listener | None = None


class Watch:
    """Asks each actor of a pool again and again whether it is alive."""

    def __init__(self, pool: Pool, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Nobody is asked."""
        self.pool, self.clock = pool, clock
        self._watched: dict[str, _Watched] = {}

    async def run(self) -> None:
        """Look at all of them for ever."""
        while True:
            self.look()
            await asyncio.sleep(self.pool.timeouts.health_s)

    def look(self) -> None:
        """Hear who has answered, ask them again, and kill those that hang."""
        for role in list(self.pool.state.roles.values()):
            for rank, (name, actor) in enumerate(zip(role.names, role.actors, strict=True)):
                watched = self._watched.get(name)
                if watched is None or watched.actor is not actor:
                    timeouts = self.pool.timeouts
                    health = Health(
                        hang_s=timeouts.hang_s,
                        suspect_s=MISSED * timeouts.health_s,
                        clock=self.clock,
                    )
                    watched = self._watched[name] = _Watched(actor, health)
                    self._ask(role, rank, watched)
                elif watched.question is not None:
                    self._look_at(role, rank, watched)

    def _ask(self, role: RoleHandle[Any], rank: int, watched: _Watched) -> None:
        watched.health.asked()
        watched.listener = role.listener
        watched.question = role.start(RoleActor.health, rank)()

    def _look_at(self, role: RoleHandle[Any], rank: int, watched: _Watched) -> None:
        # The answer may be there since a time in which nobody looked, or this process stood still.
        ready, _ = ray.wait([watched.question], timeout=0, fetch_local=False)
        if ready:
            try:
                [answer] = ray.get(ready, timeout=0)
            except RayError as error:
                watched.question = None  # it is dead, which whoever needs it will meet
                if role.listener is not None:
                    role.listener.lost(rank, death_of(error))
                return
            watched.health.answered()
            if role.listener is not None and role.listener is watched.listener:
                role.listener.answered(rank, answer)
            self._ask(role, rank, watched)
        elif watched.health.hangs:
            watched.question = None
            logger.error(
                "%s%s has not answered for %.0f s (timeouts.hang_s)%s: killed",
                role.names[rank], self._node(role.name, rank), watched.health.open_s,
                role.open_calls(rank),
            )  # fmt: skip
            ray.kill(watched.actor)
            if role.listener is not None:
                open_s = watched.health.open_s
                role.listener.lost(rank, f"no answer for {open_s:.0f} s: killed", age_s=open_s)
        elif watched.health.is_suspect and role.listener is not None:
            role.listener.suspected(rank)

    def _node(self, role: str, rank: int) -> str:
        if role not in self.pool.state.groups:
            return ""
        return f" on {self.pool.state.places_of(role)[rank].address}"


@asynccontextmanager
async def watched(pool: Pool) -> AsyncIterator[None]:
    """While this is open, actors of the pool that hang are killed."""
    watching = asyncio.create_task(Watch(pool).run())
    try:
        yield
    finally:
        watching.cancel()
