"""Engines that died, and the ones that come in their place while the others go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from actors.cluster.role_handle import RoleHandle
from actors.engines.fleet import ALIVE, Fleet, State
from actors.engines.replica_spec import fault_of
from rlhf_ray.deadlines import deadline, side_by_side
from rlhf_ray.errors import ActorDied, RlhfRayError, RunError

logger = logging.getLogger(__name__)

# Whose process is on its way, or will be.
COMING = (State.DEAD, State.STARTING)


async def never(died: ActorDied) -> None:
    """Where nothing comes in the place of what died."""
    raise died


class Replacement:
    """Keeps a fleet's states true, and has dead engines replaced.

    Attributes:
        actors: Of the role. Who is being replaced is `away` there.
        error: Why the last one that retired did.
    """

    def __init__(
        self,
        actors: RoleHandle[Any],
        fleet: Fleet,
        *,
        replace: Callable[[ActorDied], Awaitable[None]] = never,
        at_once: bool = True,
        again_s: float | None = None,
        change_s: float,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Everybody is well.

        Args:
            actors: Of the role.
            fleet: Their states.
            replace: Brings another actor to the place of one that died.
            at_once: Whether it may come beside whatever the job does; else it comes when somebody
                waits for it in `settled`, as where its GPUs are other roles' by turns.
            again_s: After so long it is tried again to replace one that retired, as where its node
                was lost and another one has come; None for never.
            change_s: In which a new engine runs, or has failed to.
            changed: Called whenever the states did.
        """
        self.actors, self.fleet, self.error = actors, fleet, RunError("no engine was started")
        self._replace, self._at_once, self._change_s = replace, at_once, change_s
        self._again_s = again_s
        self._on_change = changed
        self._waiting: set[asyncio.Future[None]] = set()
        self._deaths: dict[int, ActorDied] = {}  # of those that nobody replaces yet
        self._tasks: set[asyncio.Task[None]] = set()
        actors.detach()
        actors.listener = self

    # What is learnt of engines.

    def answered(self, rank: int, answer: Any) -> None:
        """It is alive, but perhaps its engine is not."""
        if fault := answer["fault"]:
            self.lost(rank, fault)
            return
        if self.fleet.state(rank) == State.SUSPECT:
            self.fleet.answered(rank)
            self.tell()

    def suspected(self, rank: int) -> None:
        """It gets no new groups until it answers."""
        if self.fleet.state(rank) == State.SERVING:
            logger.warning("%s does not answer: it gets no new groups", self.actors.names[rank])
        self.fleet.suspected(rank)

    def lost(self, rank: int, why: str, *, age_s: float = 0.0) -> None:
        """It is dead, or of no use, as a call met that was made so long ago."""
        if not self.fleet.died(rank):
            return
        died = ActorDied.of(
            f"{self.actors.names[rank]}: {why}",
            role=self.actors.name, index=rank, operation="rollout", age_s=age_s,
        )  # fmt: skip
        self._deaths[rank] = died
        self.actors.away.add(rank)
        if self._at_once:
            self._begin()
        self.tell()

    def detached(self) -> None:
        """Its job is over: an engine that retired in it may be well in the next one."""
        for task in self._tasks:
            task.cancel()

    async def blames(self, rank: int, actor: Any, error: RunError) -> bool:
        """Whether a call to a replica's `actor` failed since it is dead, as it is known from now.

        Only then is the call worth repeating elsewhere.
        """
        if not self.is_current(rank, actor):
            return True
        if isinstance(error, ActorDied) and error.role == self.actors.name:
            self.lost(rank, str(error), age_s=error.age_s)
            return True
        fault, _ = await fault_of(self.actors, rank)
        if fault and self.is_current(rank, actor):
            self.lost(rank, fault)
        return not self.is_current(rank, actor)

    def is_current(self, rank: int, actor: Any) -> bool:
        """Whether an actor is the replica's still, and alive as far as is known."""
        return self.actors.actors[rank] is actor and self.fleet.state(rank) in ALIVE

    async def ask(
        self, method: Callable[..., Any], ranks: Sequence[int], *arguments: Any, timeout_s: float
    ) -> Mapping[int, Any]:
        """The answers of some replicas, without those that die meanwhile.

        Raises:
            RunError: One that is well failed.
        """

        async def one(rank: int) -> tuple[int, Any] | None:
            actor = self.actors.actors[rank]
            try:
                [answer] = await self.actors.call(method, timeout_s=timeout_s, only=rank)(
                    *arguments
                )
            except RunError as error:
                if await self.blames(rank, actor, error):
                    return None
                raise
            return rank, answer

        found = await side_by_side(one(rank) for rank in ranks)
        return dict(pair for pair in found if pair is not None)

    async def found_dead(self) -> bool:
        """Ask all that are alive how they are; was there one that is not well."""

        async def is_dead(rank: int) -> bool:
            fault, _ = await fault_of(self.actors, rank)
            if fault:
                self.lost(rank, fault)
            return bool(fault)

        return any(await side_by_side(is_dead(rank) for rank in self.fleet.those(*ALIVE)))

    # Others come.

    def _begin(self) -> None:
        for rank, died in self._deaths.items():
            self.fleet.starts(rank)
            task = asyncio.create_task(self._come(rank, died))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._deaths.clear()

    async def _come(self, rank: int, died: ActorDied) -> None:
        name = self.actors.names[rank]
        while not await self._has_come(name, rank, died):
            if self._again_s is None:
                return
            await asyncio.sleep(self._again_s)
            logger.warning("%s: it is tried again to replace it", name)
            died.age_s = 0.0  # no call has met what comes now
            self.fleet.starts(rank)
        logger.warning("%s is there again, and waits for weights", name)
        self.actors.away.discard(rank)
        self.fleet.started(rank)
        self.tell()

    async def _has_come(self, name: str, rank: int, died: ActorDied) -> bool:
        try:
            await self._replace(died)
        except RlhfRayError as error:
            logger.error("%s is not replaced: %s", name, error)
            why = str(error)
        except Exception as error:  # a fault of ours: the others go on all the same
            logger.exception("%s is not replaced", name)
            why = repr(error)
        else:
            return True
        self.error = RunError(f"no engine is left, {name} was the last: {why}")
        self.fleet.retired(rank)
        self.tell()
        return False

    # What others wait for.

    def tell(self) -> None:
        """The states have changed."""
        for change in self._waiting:
            if not change.done():
                change.set_result(None)
        self._on_change()

    async def changes(self) -> None:
        """Wait for the next change; whoever waits has a deadline of their own."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(change)
        try:
            await change
        finally:
            self._waiting.discard(change)

    async def settled(self) -> None:
        """Wait until nobody is being replaced.

        Raises:
            RunError: Nobody is left.
        """
        await self._until(lambda: not self.fleet.those(*COMING))

    async def trusted(self) -> None:
        """Wait until nobody is suspect: whoever does not answer is killed in time.

        Raises:
            RunError: Nobody is left.
        """
        await self._until(lambda: not self.fleet.those(State.SUSPECT))

    async def some(self, *states: State) -> None:
        """Wait until a replica is in one of some states, or until none is on its way to any.

        Raises:
            RunError: Nobody is left.
        """
        await self._until(lambda: bool(self.fleet.those(*states)) or not self.fleet.those(*COMING))

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._begin()
            late = self.fleet.those(*COMING, State.SUSPECT)
            names = ", ".join(self.actors.names[rank] for rank in late)
            async with deadline(self._change_s, actor=names, operation="a change of the engines"):
                await self.changes()
        if self.is_over:
            raise self.error

    @property
    def is_over(self) -> bool:
        """Whether nobody is left, and nobody comes."""
        return len(self.fleet.those(State.RETIRED)) == len(self.fleet.replicas)
