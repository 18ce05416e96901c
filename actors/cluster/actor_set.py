"""Some actors of one role, and calls to all of them with a deadline."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from actors.cluster.busy import BusyClock
from actors.cluster.deadline import within
from actors.cluster.turns import Turns

# In one turn: publication has two, and what frees the memory is one more.
MOST_CALLS = 3


class ActorSet:
    """The actors of one role in the order of their ranks.

    Attributes:
        busy: Runs while any of them is asked something.
        gpu_turns: Which of the roles on the same GPUs computes; None where no other role lives
            there.
    """

    gpu_turns: Turns | None = None

    def __init__(self, role: str, names: Sequence[str], actors: Sequence[Any]) -> None:
        """Name each actor, for errors."""
        self.role, self.names, self.actors = role, list(names), list(actors)
        self.busy = BusyClock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process, or a later one, begins with a clock of its own."""
        return ActorSet, (self.role, self.names, self.actors)

    @asynccontextmanager
    async def turn(self, *, timeout_s: float) -> AsyncIterator[None]:
        """What is inside computes; on shared GPUs only while no other role does.

        The memory of its passes is given back before the next one's turn: PyTorch would keep it for
        the process that had it.

        Args:
            timeout_s: Of each call inside.

        Raises:
            DeadlineError: The turns of the others did not end in time.
        """
        if self.gpu_turns is None:
            yield
            return
        async with self.gpu_turns.turn(self.role, at_most_s=MOST_CALLS * timeout_s):
            yield
            await self.call("free_memory", timeout_s=timeout_s)

    async def compute(self, method: str, *arguments: Any, timeout_s: float) -> list[Any]:
        """As `call`, for what passes a model: in this role's turn."""
        async with self.turn(timeout_s=timeout_s):
            return await self.call(method, *arguments, timeout_s=timeout_s)

    async def call(
        self, method: str, *arguments: Any, timeout_s: float, **keywords: Any
    ) -> list[Any]:
        """Call the same method on every actor and wait for all."""
        refs = [getattr(actor, method).remote(*arguments, **keywords) for actor in self.actors]
        return await self.answers(refs, method, timeout_s=timeout_s)

    async def call_one(self, index: int, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Call a method on one actor."""
        ref = getattr(self.actors[index], method).remote(*arguments)
        [value] = await self.answers([ref], method, timeout_s=timeout_s, indices=[index])
        return value

    async def answers(
        self,
        refs: Sequence[Any],
        method: str,
        *,
        timeout_s: float,
        indices: Sequence[int] | None = None,
    ) -> list[Any]:
        """Wait for calls that were made: of every actor, or of those at `indices`."""
        names = self.names if indices is None else [self.names[index] for index in indices]
        with self.busy.working():
            return await within(
                refs, timeout_s=timeout_s, actors=names, operation=f"{self.role}.{method}"
            )

    def __len__(self) -> int:
        """How many actors."""
        return len(self.actors)
