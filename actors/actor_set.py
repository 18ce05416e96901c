"""Some actors of one role, and calls to all of them with a deadline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.deadline import within


class ActorSet:
    """The actors of one role in the order of their ranks."""

    def __init__(self, role: str, names: Sequence[str], actors: Sequence[Any]) -> None:
        """Name each actor, for errors."""
        self.role, self.names, self.actors = role, list(names), list(actors)

    async def call(
        self, method: str, *arguments: Any, timeout_s: float, **keywords: Any
    ) -> list[Any]:
        """Call the same method on every actor and wait for all."""
        refs = [getattr(actor, method).remote(*arguments, **keywords) for actor in self.actors]
        return await within(
            refs, timeout_s=timeout_s, actors=self.names, operation=f"{self.role}.{method}"
        )

    async def call_one(self, index: int, method: str, *arguments: Any, timeout_s: float) -> Any:
        """Call a method on one actor."""
        ref = getattr(self.actors[index], method).remote(*arguments)
        [value] = await within(
            [ref],
            timeout_s=timeout_s,
            actors=[self.names[index]],
            operation=f"{self.role}.{method}",
        )
        return value

    def __len__(self) -> int:
        """How many actors."""
        return len(self.actors)
