"""Calls of vLLM's engine: each ends by its answer, by its deadline or with the engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from rlhf_ray.deadlines import deadline
from rlhf_ray.errors import RunError

# An engine tells of itself between two of its steps.
ANSWER_S = 60.0
# How often an engine that is waited for is looked at.
POLL_S = 0.25


class EngineCalls:
    """Base of the actor around one of vLLM's engines: the part that calls it.

    When an engine's process dies, vLLM fails its requests, but never answers calls that wait for
    the process (`AsyncMPClient._call_utility_async`). So every wait is in `usable`, which ends it
    when the engine dies, or when a call that changes its state fails: nobody knows that state then.

    Attributes:
        engine: VLLM's `AsyncLLM`, once it is started.
        fault: Why the engine is in a state that nobody knows; empty where it is in a known one.
        scheduler: Held while requests are admitted, while weights are exchanged, and on the way to
            sleep and back: whoever pauses the scheduler must be the one who resumes it.
    """

    engine: Any = None

    def __init__(self, name: str) -> None:
        """Nothing is asked so far; `name` is the actor's, for errors."""
        self.name, self.fault = name, ""
        self.scheduler = asyncio.Lock()
        self._waits: set[asyncio.Timeout] = set()
        self._watch: asyncio.Task[None] | None = None

    @property
    def unusable(self) -> str:
        """Why nobody may use the engine any more; empty where it can be used."""
        if self.engine is not None and self.engine.errored:
            return "its engine died"
        return self.fault

    def fail(self, fault: str) -> None:
        """Nobody may use the engine any more: all that waits for it ends."""
        self.fault = self.fault or fault
        self._end_waits()

    async def ask(self, method: str, *arguments: Any, timeout_s: float, **keywords: Any) -> Any:
        """An answer of vLLM's engine, whose own calls wait for its processes without a deadline.

        Raises:
            DeadlineError: It did not come in time.
            RunError: The engine died, or cannot be used.
        """
        operation = f"the engine's {method}"
        async with (
            deadline(timeout_s, actor=self.name, operation=operation),
            self.usable(operation),
        ):
            return await getattr(self.engine, method)(*arguments, **keywords)

    async def change(self, method: str, *arguments: Any, timeout_s: float, **keywords: Any) -> Any:
        """As `ask`, of a call that leaves the engine in a state that nobody knows if it fails."""
        try:
            return await self.ask(method, *arguments, timeout_s=timeout_s, **keywords)
        except BaseException as error:
            self.fail(f"its {method} failed: {str(error) or type(error).__name__}")
            raise

    @asynccontextmanager
    async def usable(self, operation: str) -> AsyncIterator[None]:
        """What is inside is waited for as long as the engine can be used.

        Raises:
            RunError: It cannot, or no longer; names the operation.
        """
        self.require_usable(operation)
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits.add(wait)
                if self._watch is None or self._watch.done():
                    self._watch = asyncio.create_task(self._look_after())
                yield
        except Exception:
            self.require_usable(operation)  # what vLLM raises then says less
            raise
        finally:
            self._waits.discard(wait)

    def require_usable(self, operation: str) -> None:
        """Refuse what would wait for an engine that nobody may use.

        Raises:
            RunError: It is one; names the operation.
        """
        if reason := self.unusable:
            raise RunError(f"{operation}: {self.name} cannot be used: {reason}")

    async def _look_after(self) -> None:
        while self._waits and not self.unusable:
            await asyncio.sleep(POLL_S)
        self._end_waits()

    def _end_waits(self) -> None:
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time())
        self._waits.clear()

    async def take_scheduler(self, operation: str, timeout_s: float) -> None:
        """Hold `scheduler`, whoever releases it.

        Raises:
            DeadlineError: Others hold it for too long.
            RunError: The engine cannot be used.
        """
        async with (
            deadline(timeout_s, actor=self.name, operation=operation),
            self.usable(operation),
        ):
            await self.scheduler.acquire()
        if self.unusable:  # whoever held it before has failed
            self.scheduler.release()
            self.require_usable(operation)

    @asynccontextmanager
    async def scheduling(self, operation: str, timeout_s: float) -> AsyncIterator[None]:
        """What is inside holds `scheduler`, and has the deadline together with the wait for it."""
        async with deadline(timeout_s, actor=self.name, operation=operation):
            await self.take_scheduler(operation, timeout_s)
            try:
                yield
            finally:
                self.scheduler.release()

    @asynccontextmanager
    async def paused(self, timeout_s: float) -> AsyncIterator[None]:
        """Requests that are added inside begin together."""
        try:
            await self.ask("pause_generation", mode="keep", clear_cache=False, timeout_s=timeout_s)
            yield
        finally:
            if not self.unusable:
                # Also for an admission that is cancelled meanwhile: the engine must go on.
                resumed = self.change("resume_generation", timeout_s=ANSWER_S)
                await asyncio.shield(resumed)
