"""Roles that outlive their actors: a call that meets a death is repeated, or says what is lost.

A role without a state of its own (reference, reward, experience) answers the repeated call as if
nothing had happened. What was trained is gone with the actors that held it: whoever asked for it is
told so, until it has been restored. So is whoever asks engines for what they cannot know before the
weights are published to them.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial, wraps
from typing import Any, TypeVar

from actors.cluster.role_handle import RoleHandle
from actors.pool.pool import Pool
from rlhf_ray.errors import ActorDied, RunError, StateLost
from rlhf_ray.roles import GenerationRequest, Publication, RolloutGroup

T = TypeVar("T")

ENGINES = "rollout"


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


class LastingEngines(Lasting):
    """Engines, which sample from what was published to them.

    Attributes:
        published_to: The incarnation of the actors that have the weights.
    """

    def __init__(self, role: Any, pool: Pool) -> None:
        """As any role; nothing is published."""
        super().__init__(role, pool)
        vars(self)["published_to"] = -1

    async def lasts(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call that needs no weights; also where an engine dies in its actor."""
        while True:
            try:
                return await repeated(self._pool, call)
            except RunError:
                if not await self.mended():
                    raise

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[asyncio.Future[RolloutGroup]]:
        """As engines do.

        Raises:
            StateLost: Some died, here or where an answer is waited for; others have come.
        """
        self.require_published()
        answers = await self.or_replaced(partial(self._role.generate, requests, together=together))
        lasting: list[asyncio.Future[RolloutGroup]] = []
        for answer in answers:
            future = asyncio.ensure_future(self._answer(answer))
            # Also of one that is cancelled before it begins, and never waits for its answer.
            future.add_done_callback(partial(_cancel, answer))
            lasting.append(future)
        return lasting

    async def _answer(self, answer: Awaitable[RolloutGroup]) -> RolloutGroup:
        async def wait() -> RolloutGroup:
            return await answer

        return await self.or_replaced(wait)

    def require_published(self) -> None:
        """Refuse what would sample from weights that nobody published.

        Raises:
            StateLost: There are such engines.
        """
        if self._role.actors.incarnation != self.published_to:
            raise StateLost.named(ENGINES, "they were started again, without the weights")

    async def or_replaced(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call; where it fails, engines that are of no use are replaced.

        Raises:
            StateLost: There were such.
            RunError: It failed for another reason.
        """
        try:
            return await or_lost(self._pool, call)
        except StateLost:
            raise
        except RunError as error:
            if await self.mended():
                raise StateLost.named(ENGINES, str(error)) from error
            raise

    async def mended(self) -> bool:
        """Replace engines that cannot be used or were left amid a publication; were there any."""
        role: RoleHandle[Any] = self._role.actors
        incarnation = role.incarnation
        broken = await role.spec.broken(role)
        if broken:
            fault = ActorDied.of(
                f"{role.names[broken[0]]} is of no use",
                role=role.name, index=broken[0], operation="publication", age_s=0.0,
            )  # fmt: skip
            fault.incarnation = incarnation
            await self._pool.restarts.after(fault, self._pool.state.roles)
        return bool(broken)


def _cancel(answer: asyncio.Future[Any], _: object) -> None:
    answer.cancel()


class LastingPolicy(LastingTrained):
    """The policy, which publishes to engines."""

    def __init__(self, role: Any, pool: Pool, engines: LastingEngines) -> None:
        """As any trained role; `engines` have nothing yet."""
        super().__init__(role, pool)
        vars(self).update(_engines=engines, _published_by=role.actors.incarnation)

    async def restore(self, folder: str) -> None:
        """As any trained role; the next publication opens the way to the engines again."""
        await super().restore(folder)
        self._role.disconnected()

    async def publish(self, version: int) -> None:
        """Bring the weights to every engine.

        Raises:
            StateLost: The policy died, or engines did; nobody samples from what these have.
        """
        engines, by = self._engines, self._role.actors.incarnation
        if by != self._published_by:  # the ones before may have died amid a publication
            await engines.mended()
        to = engines.actors.incarnation
        await engines.or_replaced(lambda: self.lasts(partial(self._role.publish, version)))
        vars(engines)["published_to"] = to
        vars(self)["_published_by"] = by

    async def compare(self) -> Publication:
        """Have the engines score the probe.

        Raises:
            StateLost: Some died.
        """
        self._engines.require_published()
        compare = partial(self.lasts, self._role.compare)
        compared: Publication = await self._engines.or_replaced(compare)
        return compared
