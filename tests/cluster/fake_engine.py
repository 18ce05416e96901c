"""A tape of what engines sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from rlhf_ray.roles.groups import GenerationRequest, RolloutGroup
from rlhf_ray.roles.protocols import EnginePart, RolloutEngine, SleepLevel
from rlhf_ray.rollouts.feed import sample_all


class ReplayedEngine:
    """The engine the first time it is asked for a step's rollouts; then the same ones again."""

    def __init__(self, engine: RolloutEngine, tape: dict[Any, Any]) -> None:
        self.engine, self.tape = engine, tape

    async def generate(
        self, requests: Sequence[GenerationRequest], *, together: bool = True
    ) -> list[Awaitable[RolloutGroup]]:
        key = tuple((request.prompt.prompt_id, request.seeds_G) for request in requests)
        if key not in self.tape:
            self.tape[key] = await sample_all(self.engine, requests)
        return [asyncio.sleep(0, result=group) for group in self.tape[key]]

    async def joining(self) -> None:
        await self.engine.joining()

    async def sleep(self, level: SleepLevel) -> None:
        await self.engine.sleep(level)

    async def wake_up(self, part: EnginePart | None = None) -> None:
        await self.engine.wake_up(part)


def _(fake: ReplayedEngine) -> RolloutEngine:
    return fake
