"""The rollout role as pool and loop see it: independent replicas, requests spread by load.

A replica that dies takes no group with it: what it was sampling goes to the others, which draw the
same tokens from the same seeds, and another one comes beside the run. It gets groups once it has
the weights. With nobody left to serve, groups wait for the new one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from actors.cluster.role_handle import RoleHandle
from actors.engines.acting import Acting
from actors.engines.dispatch import Dispatch, Load
from actors.engines.fleet import ALIVE, KNOWN, Fleet, State
from actors.engines.replacement import Replacement, never
from actors.engines.replica_spec import fault_of
from actors.engines.rollout import RolloutReplica
from actors.engines.samples import NO_VERSION, Ending
from rlhf_ray.deadlines import deadline, side_by_side
from rlhf_ray.errors import ActorDied, RunError, StateLost
from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup
from rlhf_ray.roles.protocols import EnginePart, SleepLevel

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False, kw_only=True)
class _Group:
    """A group that somebody waits for, and who samples it."""

    request: GenerationRequest
    load: Load
    replica: int | None = None


class ReplicaSet:
    """The rollout role: replicas side by side, the least loaded one first.

    Attributes:
        timeout_s: Deadline of a group's answer, once it has a replica.
        sleeps: Whether they live on GPUs that another role needs between rollouts. A dead one is
            replaced when these are theirs, and all get the weights anew.
        seats: Sequences that one replica runs at a time.
        fleet: Their states; nobody knows their weights unless it is given.
        acting: Gives what it takes to act in an environment now; None without one.
    """

    acting: Callable[[], Acting] | None = None

    def __init__(
        self,
        actors: RoleHandle[RolloutReplica],
        ending: Ending,
        *,
        timeout_s: float,
        sleeps: bool,
        seats: int,
        replace: Callable[[ActorDied], Awaitable[None]] = never,
        start_s: float = 0.0,
        again_s: float | None = None,
        fleet: Fleet | None = None,
    ) -> None:
        """All idle.

        `replace` has another one in the place of one that died, within `start_s`. Where it cannot,
        it is tried again after `again_s`.
        """
        self.actors, self.ending, self.timeout_s = actors, ending, timeout_s
        self.sleeps, self.seats = sleeps, seats
        self.change_s = start_s + timeout_s
        self._update_began_s = 0.0
        self.fleet = fleet or Fleet(len(actors))
        serving = partial(self.fleet.those, State.SERVING)
        self.dispatch = Dispatch(len(actors), seats=seats, serving=serving)
        self.replacement = Replacement(
            actors,
            self.fleet,
            replace=replace,
            at_once=not sleeps,
            again_s=None if sleeps else again_s,
            change_s=self.change_s,
            changed=self._changed,
        )

    def _changed(self) -> None:
        if self.replacement.is_over:
            self.dispatch.refuse(self.replacement.error)
        self.dispatch.give_out()

    # Requests.

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[asyncio.Task[RolloutGroup]]:
        """Begin to sample requests, after waking up; one task a request, in order.

        Those that are together are given to replicas at once. Others wait here until a replica has
        seats for all of a group's samples, in the order in which they were asked for.

        Raises:
            StateLost: Weights have to be published before, to all or in place of newer ones.
            RunError: No replica is left.
        """
        await self.wake_up()
        if together:
            await self._require_weights(requests)
        groups = [_Group(request=request, load=Load.of(request)) for request in requests]
        if together:
            await self._admit_together(groups)
        answers = []
        for group in groups:
            answer = asyncio.ensure_future(self._answer(group))
            # Also of one that is cancelled before it begins, which no `finally` of its own sees.
            answer.add_done_callback(partial(self._left, group))
            answers.append(answer)
        return answers

    async def _require_weights(self, requests: Sequence[GenerationRequest]) -> None:
        """See that a wave is sampled from the weights that it is asked of, and at once.

        Others wait for whoever comes, and newer weights are as good: each token has its version. A
        wave waits until all that live say so: how it is divided decides its last bits, and should
        not hang on how busy a machine is.
        """
        await self.replacement.trusted()
        if not self.fleet.those(*KNOWN):
            await self.replacement.some(*ALIVE)
        if not self.fleet.those(*KNOWN, State.UPDATING):
            raise self._lost("they have no weights")
        limits = [r.newest_version for r in requests if r.newest_version is not None]
        newest = self.fleet.newest_version
        if limits and newest > min(limits):
            raise self._lost(f"they have version {newest}, and version {min(limits)} is asked")

    def _lost(self, why: str) -> StateLost:
        return StateLost.named(self.actors.name, why)

    async def _admit_together(self, groups: Sequence[_Group]) -> None:
        """Give out a wave; groups of replicas that die meanwhile wait for others."""
        if not self.fleet.those(State.SERVING):
            return  # each begins where it can
        for group, replica in zip(
            groups, self.dispatch.assign([group.load for group in groups]), strict=True
        ):
            group.replica = replica
        try:
            await side_by_side(
                self._admit(replica, [group for group in groups if group.replica == replica])
                for replica in sorted({g.replica for g in groups if g.replica is not None})
            )
        except BaseException:
            for group in groups:
                self._leave(group)
            raise

    async def _admit(
        self, replica: int, groups: Sequence[_Group], *, together: bool = True
    ) -> None:
        """A replica takes all of some groups at once, unless it is dead."""
        actor = self.actors.actors[replica]
        admit = self.actors.start(RolloutReplica.admit, replica)
        requests = [group.request for group in groups]
        acting = self.acting() if self.acting else None
        ref = admit(requests, self.ending, self.timeout_s, together, acting)
        answers = self.actors.answers([ref], "generate", timeout_s=self.timeout_s, ranks=[replica])
        if await self._or_died(replica, actor, answers) is None:
            for group in groups:
                self._leave(group)

    async def _answer(self, group: _Group) -> RolloutGroup:
        """A group, from whichever replica lives until it is done."""
        while True:
            if group.replica is None:
                group.replica = await self._seat(group)
                await self._admit(group.replica, [group], together=False)
            elif (answer := await self._sampled(group, group.replica)) is not None:
                return answer
            else:
                self._leave(group)

    async def _seat(self, group: _Group) -> int:
        """A replica with room for it, first come, first served."""
        # Each of those before it has a deadline to be admitted by, and one to be answered by. Where
        # nobody serves, an engine starts first.
        wait_s = 2 * self.timeout_s * (self.dispatch.num_waiting + 1) + self.change_s
        operation = f"{self.actors.name}: seats for draw {group.request.draw}"
        async with deadline(wait_s, actor=self.actors.name, operation=operation):
            if self.replacement.is_over:
                raise self.replacement.error
            return await self.dispatch.wait(group.load)

    async def _sampled(self, group: _Group, replica: int) -> RolloutGroup | None:
        """What a replica makes of a group that it has; None where it dies before."""
        request, actor = group.request, self.actors.actors[replica]
        # Two objects: the rollouts stay where they are.
        finished = self.actors.start(RolloutReplica.finished, replica, num_returns=2)
        summaries, rollouts = finished(request.draw)
        answers = self.actors.answers(
            [summaries], "generate", timeout_s=self.timeout_s, ranks=[replica]
        )
        answered = await self._or_died(replica, actor, answers)
        if answered is None:
            return None
        return RolloutGroup(
            prompt=request.prompt,
            draw=request.draw,
            summaries_G=tuple(answered[0]),
            rollouts=rollouts,
        )

    async def _or_died(self, replica: int, actor: Any, call: Awaitable[T]) -> T | None:
        """What comes of a call to a replica; None where it died.

        Raises:
            StateLost: It died, and the others have to wait for the new one.
            RunError: It failed for another reason.
        """
        try:
            return await call
        except RunError as error:
            if not await self.replacement.blames(replica, actor, error):
                raise
            if self.sleeps:
                raise self._lost(str(error)) from error
            logger.warning("%s; its groups go to others", error)
            return None

    def _leave(self, group: _Group) -> None:
        """Nobody waits any more for what a replica makes of this group."""
        if group.replica is None:
            return
        replica, group.replica = group.replica, None
        self.dispatch.ended(replica, group.load)
        if self.fleet.state(replica) in ALIVE:
            self.actors.start(RolloutReplica.drop, replica)([group.request.draw])

    def _left(self, group: _Group, _: object) -> None:
        self._leave(group)

    # Weights.

    async def ready(self) -> None:
        """Wait until somebody can take weights.

        Raises:
            RunError: No replica is left.
        """
        await self.replacement.some(*ALIVE)

    def lacking(self, version: int, *, exactly: bool) -> list[int]:
        """Whom a publication of a version goes to."""
        return self.fleet.lacking(version, exactly=exactly)

    def forget(self) -> None:
        """Rely on no weights that were published: the next publication goes to all."""
        self.fleet.forget()

    def having(self, version: int) -> list[int]:
        """Who has acknowledged a version."""
        return self.fleet.having(version)

    @asynccontextmanager
    async def updating(self, replicas: Sequence[int]) -> AsyncIterator[None]:
        """While this is open, new weights are under way to some replicas, which get no new groups.

        Those that have not acknowledged them at its end are dead, unless they say themselves that
        no update is under way in them.

        Raises:
            StateLost: It failed, though the policy lives, and one of them is dead.
        """
        self._update_began_s = time.monotonic()
        for replica in replicas:
            self.fleet.updates(replica)
        try:
            yield
        except RunError as error:
            is_theirs = not isinstance(error, ActorDied) or error.role == self.actors.name
            if await self._end_update(replicas) and is_theirs:
                raise self._lost(str(error)) from error
            raise
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._end_update(replicas)))
            raise
        else:
            await self._end_update(replicas)

    async def _end_update(self, replicas: Sequence[int]) -> bool:
        """Have each of some replicas dead, stale or in wait for the probe; was one dead."""

        async def examine(replica: int) -> None:
            fault, is_updating = await fault_of(self.actors, replica)
            if fault or is_updating:
                self.lost(replica, fault or "it was left amid a publication")
            elif self.fleet.state(replica) == State.UPDATING:
                self.fleet.spared(replica)

        updating = self.fleet.those(State.UPDATING)
        left = [r for r in replicas if r in updating and self.fleet.version(r) == NO_VERSION]
        await side_by_side(map(examine, left))
        self.replacement.tell()
        return any(self.fleet.state(replica) not in ALIVE for replica in replicas)

    def acknowledged(self, replica: int, version: int) -> None:
        """It has the weights; it serves once the probe has found nothing."""
        if self.fleet.state(replica) == State.UPDATING:  # it may have died meanwhile
            self.fleet.acknowledged(replica, version)

    def agreed(self, replica: int, version: int) -> None:
        """The probe found nothing: it serves."""
        if self.fleet.state(replica) == State.UPDATING and self.fleet.version(replica) == version:
            self.fleet.agreed(replica)
            self.replacement.tell()

    def lost(self, replica: int, why: str) -> None:
        """It did not take the weights."""
        self.replacement.lost(replica, why, age_s=time.monotonic() - self._update_began_s)

    async def ask(
        self, method: Callable[..., Any], replicas: Sequence[int], *arguments: Any, timeout_s: float
    ) -> Mapping[int, Any]:
        """The answers of some replicas, without those that die meanwhile.

        Raises:
            RunError: One that is well failed.
        """
        return await self.replacement.ask(method, replicas, *arguments, timeout_s=timeout_s)

    def require_serving(self) -> None:
        """See that a publication has reached somebody.

        Raises:
            StateLost: Nobody; others come in their place.
        """
        if not self.fleet.those(*KNOWN):
            raise self._lost("none of them took the weights")

    async def joining(self) -> None:
        """Wait until an engine is there that lacks weights; for ever where that is no moment to.

        While nothing is published, one that is updating waits for a probe that nobody made.
        """
        while self.sleeps or not self.fleet.those(State.STALE, State.UPDATING):
            await self.replacement.changes()

    async def lasts(self, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call to all replicas that are there, whoever dies meanwhile."""
        while True:
            try:
                return await call()
            except ActorDied as died:
                if died.role != self.actors.name:
                    raise
                self.replacement.lost(died.index, str(died), age_s=died.age_s)
            except RunError:
                if not await self.replacement.found_dead():
                    raise

    # Shared GPUs.

    async def sleep(self, level: SleepLevel) -> None:
        """Between rollouts, where GPUs are shared."""
        if self.sleeps:
            await self._move(RolloutReplica.sleep, level)
            if level == 2:
                self.forget()

    async def wake_up(self, part: EnginePart | None = None) -> None:
        """Before weights or requests come, where GPUs are shared."""
        if self.sleeps:
            await self._move(RolloutReplica.wake_up, part)

    async def _move(self, method: Callable[..., Any], argument: Any) -> None:
        """All that are alive; now is a time to replace the others."""
        await self.replacement.settled()
        await self.ask(
            method, self.fleet.those(*ALIVE), argument, self.timeout_s, timeout_s=self.timeout_s
        )
