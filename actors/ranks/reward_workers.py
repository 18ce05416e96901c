"""The workers of the reward role as the driver sees them: groups to free ones, failures to groups.

What a user's code does to its process concerns one group. One that hangs or ends its process has a
new worker started in its place, beside which the others work on. A process may have ended for
another reason, or by another group that was in it: each is asked about once more, alone, and has
failed where that ends a process again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import ray

from actors.cluster.role_handle import RoleHandle
from actors.cluster.turns import SLACK_S
from actors.ranks.reward_worker import SIDE_BY_SIDE, Failed, LoadedFunctions, RewardWorker
from actors.ranks.seats import Seats
from rlhf_ray.config.fault_tolerance import TimeoutConfig
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.deadlines import deadline, side_by_side
from rlhf_ray.errors import ActorDied, FailureCause, GroupFailed, RunError
from rlhf_ray.roles.groups import RolloutGroup

# Between two looks at whether a worker that was killed has been replaced.
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class _Share:
    """Scorers that are asked about a group together.

    Attributes:
        kind: Plain ones have a process's random numbers, and so one group at a time.
        names: Theirs.
        timeout_s: Of a group.
    """

    kind: Literal["plain", "waiting"]
    names: tuple[str, ...]
    timeout_s: float


class RewardWorkers:
    """Equal processes of functions, remote scorers and judges.

    Any number of groups may be asked about at a time. As many are let through as can be scored,
    first come first served, and a group's deadline begins then: at each worker one at a time to
    plain functions, a few to what waits for others.

    Attributes:
        weights: Factor of each scorer in the sum, in the order of the configuration.
    """

    def __init__(
        self,
        workers: RoleHandle[RewardWorker],
        functions: LoadedFunctions,
        *,
        reward: RewardConfig,
        timeouts: TimeoutConfig,
        restart: Callable[[ActorDied], Awaitable[None]],
    ) -> None:
        """Ask `workers`, which have loaded `functions`; `restart` replaces those that died."""
        self.workers, self.timeouts, self._restart = workers, timeouts, restart
        self.weights = {**functions.weights, **reward.services}
        self._shares = list(self._shares_of(functions))
        kinds = {"plain": 1, "waiting": SIDE_BY_SIDE}
        self._seats = Seats(len(workers), kinds, on=f"the {workers.name}s")
        self._suspects: set[int] = set()  # draws that were in a process that ended

    def _shares_of(self, functions: LoadedFunctions) -> Iterator[_Share]:
        reward_s, plain = self.timeouts.reward_s, functions.plain
        if plain:
            timeout_s = len(plain) * reward_s + SLACK_S
            yield _Share(kind="plain", names=plain, timeout_s=timeout_s)
        if waiting := tuple(name for name in self.weights if name not in plain):
            yield _Share(kind="waiting", names=waiting, timeout_s=reward_s + SLACK_S)

    async def score(self, group: RolloutGroup) -> dict[str, list[float | None]]:
        """Scorer's name -> one value a sample; the first scorer that fails ends the others.

        Raises:
            GroupFailed: A scorer hung, ended its process or raised.
            RunError: The group is lost, or workers cannot be started.
        """
        found = await side_by_side(self._score(share, group) for share in self._shares)
        return {name: values_G for of_share in found for name, values_G in of_share.items()}

    async def _score(self, share: _Share, group: RolloutGroup) -> dict[str, list[float | None]]:
        at_most_s = share.timeout_s + SLACK_S + self._replaced_s
        while True:
            is_suspect = group.draw in self._suspects
            async with self._seats.seat(
                share.kind, who=f"draw {group.draw}", at_most_s=at_most_s, alone=is_suspect
            ) as number:
                try:
                    found = await self._ask(number, share, group)
                except GroupFailed as failure:
                    if failure.cause != "crashed" or is_suspect:
                        raise
                    self._suspects.add(group.draw)
                    continue
            self._suspects.discard(group.draw)
            return found

    async def _ask(
        self, number: int, share: _Share, group: RolloutGroup
    ) -> dict[str, list[float | None]]:
        """What a worker says, which is replaced where it does no longer.

        Raises:
            GroupFailed: It died, or a scorer failed.
        """
        actor, name = self.workers.actors[number], self.workers.names[number]
        timeout_s = share.timeout_s + SLACK_S
        score = self.workers.call(RewardWorker.score, timeout_s=timeout_s, only=number)
        refs, samples_G = [group.rollouts], group.samples_G
        try:
            answers: list[Any] = await score(share.names, refs, samples_G, share.timeout_s)
        except ActorDied as died:
            if died.role != self.workers.name:
                raise
            # It was killed where it did not answer at all, for whichever group it had.
            is_silent = died.age_s >= timeout_s and self._seats.num_calls(number) == 1
            cause: FailureCause = "hung" if is_silent else "crashed"
            await self._replace(number, actor, died)
            where = f"draw {group.draw}, prompt {group.prompt.prompt_id!r}"
            raise GroupFailed.of(f"{died} ({where})", cause=cause) from died
        found: dict[str, list[float | None]] | Failed = answers[0]
        if isinstance(found, dict):
            return found
        if found.cause == "hung" and share.kind == "plain":
            # Its thread goes on for ever, and has what the next group would need.
            ray.kill(actor)
            hung = ActorDied.of(
                found.message, role=self.workers.name, index=number, operation="score", age_s=0.0
            )
            await self._replace(number, actor, hung)
        raise GroupFailed.of(f"{name}: {found.message}", cause=found.cause)

    @property
    def _replaced_s(self) -> float:
        """Until a worker is there in the place of another, at most."""
        return 2 * self.timeouts.place_s + self.timeouts.start_s

    async def _replace(self, number: int, actor: Any, died: ActorDied) -> None:
        """Wait until there is another worker; whoever has a seat there waits for the same.

        Raises:
            RunError: It cannot be started.
        """
        with self._seats.closed(number):
            async with deadline(
                self._replaced_s, actor=self.workers.names[number], operation="starting it again"
            ):
                while self.workers.actors[number] is actor:
                    died.incarnation = self.workers.incarnation
                    try:
                        await self._restart(died)
                    except ActorDied as again:  # a role's calls are repeated for those
                        raise RunError(str(again)) from again
                    await asyncio.sleep(_POLL_S if self.workers.actors[number] is actor else 0)
