"""Which replica answers which group, and which groups wait for a seat: decisions alone, no I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rlhf_ray.roles.groups import GenerationRequest


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a group takes of a replica.

    Attributes:
        seats: Sequences that run at a time: one a sample.
        tokens: Of prompts and responses, at most.
    """

    seats: int
    tokens: int

    @classmethod
    def of(cls, request: GenerationRequest) -> Load:
        """Of all samples of a draw."""
        num_tokens = len(request.prompt.token_ids_T) + request.max_new_tokens
        return cls(seats=len(request.seeds_G), tokens=num_tokens * len(request.seeds_G))


class Dispatch:
    """Counts what each replica has to do, and gives groups to those that have least.

    Deterministic: among replicas with equally many tokens the first is taken.

    Attributes:
        seats: Sequences that one replica runs at a time.
        serving: The replicas that may get groups, at the time of the call.
        tokens_in_flight: Of each replica's groups.
        seats_taken: By them; more than there are where a wave is larger.
    """

    def __init__(
        self, num_replicas: int, *, seats: int, serving: Callable[[], Iterable[int]] | None = None
    ) -> None:
        """All idle; where it is not said which of them serve, all do."""
        self.seats = seats
        self.serving = serving or (lambda: range(num_replicas))
        self.tokens_in_flight = [0] * num_replicas
        self.seats_taken = [0] * num_replicas
        # In the order in which they came; done once they have a replica.
        self._waiting: dict[asyncio.Future[None], Load] = {}
        self._given: dict[asyncio.Future[None], int] = {}

    @property
    def num_waiting(self) -> int:
        """Groups that wait for a replica."""
        return len(self._waiting)

    def assign(self, loads: Sequence[Load]) -> list[int]:
        """Give a wave out at once, in order, whatever seats there are; the replica of each.

        At least one of them serves.
        """
        replicas = list(self.serving())
        return [self._give(self._least_loaded(replicas), load) for load in loads]

    async def wait(self, load: Load) -> int:
        """The replica of a group, once one has the seats and all that came before have theirs.

        A group that needs more seats than a replica has gets one that is idle.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = load
        self.give_out()
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(turn, None):
                self.give_out()
            elif turn in self._given:  # it gives up in the moment in which its turn comes
                self.ended(self._given.pop(turn), load)
            raise
        return self._given.pop(turn)

    def ended(self, replica: int, load: Load) -> None:
        """A group was answered, or failed, or is given up."""
        self.tokens_in_flight[replica] -= load.tokens
        self.seats_taken[replica] -= load.seats
        self.give_out()

    def refuse(self, error: Exception) -> None:
        """Nobody will serve: whoever waits is told why."""
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(error)
        self._waiting.clear()

    def give_out(self) -> None:
        """Give groups that wait to replicas with room for them; also where others serve now."""
        while self._waiting:
            turn, load = next(iter(self._waiting.items()))
            replicas = [r for r in self.serving() if self._has_seats(r, load)]
            if not turn.cancelled():
                if not replicas:
                    return
                self._given[turn] = self._give(self._least_loaded(replicas), load)
                turn.set_result(None)
            del self._waiting[turn]

    def _has_seats(self, replica: int, load: Load) -> bool:
        taken = self.seats_taken[replica]
        return taken + load.seats <= self.seats or not taken

    def _least_loaded(self, replicas: Sequence[int]) -> int:
        return min(replicas, key=self.tokens_in_flight.__getitem__)

    def _give(self, replica: int, load: Load) -> int:
        self.tokens_in_flight[replica] += load.tokens
        self.seats_taken[replica] += load.seats
        return replica
