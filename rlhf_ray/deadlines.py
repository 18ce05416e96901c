"""Waits that end: by what was waited for, or by an error that says who was late and with what."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from rlhf_ray.errors import RunError

T = TypeVar("T")


class DeadlineError(RunError):
    """A wait was longer than its deadline.

    Attributes:
        late: Who has not answered, by their positions among those that were asked.
    """

    late: tuple[int, ...] = ()

    @classmethod
    def of(cls, operation: str, actors: str, *, age_s: float, timeout_s: float) -> DeadlineError:
        """Who has not answered, when asked for what, and for how long."""
        return cls(
            f"{operation}: no answer from {actors} after {age_s:.0f} s (deadline {timeout_s:g} s)"
        )


@asynccontextmanager
async def deadline(timeout_s: float, *, actor: str, operation: str) -> AsyncIterator[None]:
    """What is inside is waited for until the deadline, and then cancelled.

    Raises:
        DeadlineError: It was not done in time; names actor, operation and age.
    """
    started_s = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s) as timer:
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise  # of something inside
        age_s = time.monotonic() - started_s
        raise DeadlineError.of(operation, actor, age_s=age_s, timeout_s=timeout_s) from error


async def side_by_side(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """What all give, in their order; the first that fails ends the others, and is raised as it is.

    `asyncio.gather` leaves the others running, and `asyncio.TaskGroup` wraps the error.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_result_of(one)) for one in awaitables]
    except BaseExceptionGroup as failed:
        error = failed.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise error  # outside of the block: the group is no context of it


async def in_order(
    awaitables: Iterable[Awaitable[T]], *, at_a_time: int
) -> AsyncGenerator[T, None]:
    """What some give, in their order, so many of them under way at a time.

    Each is taken when there is room for it. Those that are under way end where the first fails, or
    where nobody wants more: ask for it in `contextlib.aclosing`.
    """
    under_way: deque[asyncio.Future[T]] = deque()
    try:
        for awaitable in awaitables:
            under_way.append(asyncio.ensure_future(awaitable))
            if len(under_way) == at_a_time:
                yield await under_way.popleft()
        while under_way:
            yield await under_way.popleft()
    finally:
        for one in under_way:
            one.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def _result_of(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def in_thread(
    call: Callable[[], T],
    *,
    timeout_s: float,
    actor: str,
    operation: str,
    lock: threading.Lock | None = None,
) -> T:
    """What `call` returns, which runs beside the event loop.

    With a `lock` it runs alone: a call whose waiter gave up goes on, and others wait for its end.

    Raises:
        DeadlineError: It did not return in time. Its thread goes on, and ends with the process.
    """

    def alone() -> T:
        if lock is None:
            return call()
        if not lock.acquire(timeout=timeout_s):
            raise DeadlineError.of(operation, actor, age_s=timeout_s, timeout_s=timeout_s)
        try:
            return call()
        finally:
            lock.release()

    async with deadline(timeout_s, actor=actor, operation=operation):
        return await in_daemon_thread(alone, name=operation)


async def in_daemon_thread(call: Callable[[], T], *, name: str) -> T:
    """Run `call` in a thread of that name that nobody joins; the caller has the deadline.

    `asyncio.to_thread` would let a function that never returns block the process's exit.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    results: list[T] = []
    errors: list[BaseException] = []

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        # After the deadline the loop may be closed: then nobody waits for the result.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish)

    threading.Thread(target=run, daemon=True, name=name).start()
    await done
    if errors:
        raise errors[0]
    return results[0]
