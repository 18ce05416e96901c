"""Environments of many rollouts in one process, each by the name that its rollout gave it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from rlhf_ray.deadlines import DeadlineError, deadline
from rlhf_ray.environments.protocol import Environment, Step
from rlhf_ray.errors import GroupFailed
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What a call may take that is cancelled. Engines wait 10 s longer for a close than its deadline.
_CANCEL_S = 5.0
# For all sessions of a job that is over; what takes longer goes on beside the next job.
_ALL_S = 10.0


@dataclass(eq=False, kw_only=True)
class _Session:
    """One rollout's.

    Attributes:
        rollout: Draw and sample.
        used_s: When it was last asked.
        call: Its `reset` or `step` that was asked last.
    """

    environment: Environment
    rollout: tuple[int, int]
    used_s: float
    call: asyncio.Task[Any] | None = None


class Sessions:
    """Opens, asks and closes environments; for one event loop.

    What the user's code raises, and what it takes too long for, is a `GroupFailed` that can travel
    to another process, whatever the error was. An environment is closed once its last call has
    ended: one that is under way is cancelled, whoever asked for it has given it up.
    """

    def __init__(
        self,
        make: Callable[[], Environment],
        *,
        roles: Collection[str],
        timeout_s: float,
        idle_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """None are open.

        Args:
            make: Makes the environment of a rollout.
            roles: Of messages that the chat template was checked for; empty for any.
            timeout_s: For each answer.
            idle_s: After so long nobody will ask again: whoever would is gone.
            clock: Seconds.
        """
        self._make, self._roles = make, roles
        self._timeout_s, self._idle_s, self._clock = timeout_s, idle_s, clock
        self._open: dict[str, _Session] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    async def open(self, name: str, draw: int, sample: int, prompt: Prompt, seed: int) -> None:
        """Begin the environment of a rollout, by a name that no other attempt has.

        Another one of the same rollout is an attempt which was given up: it is closed beside this,
        as are those that nobody asks any more.

        Raises:
            GroupFailed: It could not be made, its `reset` raised or was late, or it was closed
                meanwhile.
        """
        now_s, rollout = self._clock(), (draw, sample)
        for other, session in list(self._open.items()):
            if session.rollout == rollout or now_s - session.used_s > self._idle_s:
                self._close_beside(other)
        with _failures("its beginning"):
            environment = self._make()
        session = _Session(environment=environment, rollout=rollout, used_s=now_s)
        self._open[name] = session
        try:
            await self._call(name, session, partial(environment.reset, prompt, seed), "reset")
        except BaseException:
            self._close_beside(name)
            raise

    async def step(self, name: str, answer: str) -> Step:
        """What comes of a turn.

        Raises:
            GroupFailed: It raised, was late, gave no `Step` or messages that cannot be shown,
                or there is no such session any more.
        """
        session = self._open.get(name)
        if session is None:
            raise _closed(name)
        session.used_s = self._clock()
        step = await self._call(name, session, partial(session.environment.step, answer), "step")
        with _failures("step"):
            if not isinstance(step, Step):
                raise TypeError(f"step must give a Step, got {type(step).__name__}")
            for name in ("num_calls", "num_failed_calls"):  # the journal takes no NumPy integers
                if not isinstance(number := getattr(step, name), int):
                    raise ValueError(f"{name} of a step must be an int, got {number!r:.80}")
            for message in step.messages:
                self._check(message)
        return step

    async def close(self, name: str) -> None:
        """End a session, amid what it is asked too; nothing where there is none of the name.

        Raises:
            GroupFailed: Its `close` raised or was late; it is gone all the same.
        """
        session = self._open.pop(name, None)
        if session is not None:
            await self._end(session)

    async def close_all(self) -> None:
        """End all of them side by side, whatever their `close` does.

        Those that take longer than others would wait for are left to end by themselves.
        """
        for name in list(self._open):
            self._close_beside(name)
        if self._closing:
            await asyncio.wait(self._closing, timeout=_ALL_S)

    def _close_beside(self, name: str) -> None:
        """Close a session while others go on."""
        session = self._open.pop(name, None)
        if session is not None:
            self._beside(self._end(session))

    def _beside(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(_logged(closing))
        self._closing.add(task)  # the event loop itself keeps no task alive
        task.add_done_callback(self._closing.discard)

    async def _end(self, session: _Session) -> None:
        """Close its environment, behind the end of what it does."""
        call, close = session.call, session.environment.close
        if call is not None and not call.done():
            call.cancel()
            _, late = await asyncio.wait([call], timeout=min(_CANCEL_S, self._timeout_s))
            if late:  # it may begin something even now: that is closed once it is there
                call.add_done_callback(lambda _: self._beside(self._answer(close, "close")))
        await self._answer(close, "close")

    async def _call(
        self, name: str, session: _Session, ask: Callable[[], Awaitable[T]], operation: str
    ) -> T:
        """What an open session's environment gives."""
        assert session.call is None or session.call.done(), f"session {name} is asked already"
        session.call = call = asyncio.create_task(self._answer(ask, operation))
        try:
            answer = await call
        except asyncio.CancelledError:
            if (asking := asyncio.current_task()) is not None and asking.cancelling():
                raise
            if name in self._open:
                failed = GroupFailed.of(f"{operation}: it cancelled itself", cause="raised")
                raise failed from None
            raise _closed(name) from None
        if name not in self._open:
            raise _closed(name)
        return answer

    async def _answer(self, ask: Callable[[], Awaitable[T]], operation: str) -> T:
        with _failures(operation):
            async with deadline(self._timeout_s, actor="the environment", operation=operation):
                return await ask()

    def _check(self, message: Any) -> None:
        """Refuse what a chat template could not show, or was not checked for."""
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"a message must have a role and content, got {message!r:.80}")
        for key, value in message.items():
            _require_text("a key of a message", key)
            _require_text(f"{key} of a message", value)
        if self._roles and message["role"] not in self._roles:
            raise ValueError(
                f"its messages must have the role {' or '.join(self._roles)}, for which the chat "
                f"template was checked, got {message['role']!r}: name all of them in the "
                "environment's attribute roles, or set environment.template: append"
            )


def _require_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = f"{value[error.start]!a} at character {error.start}"
        raise ValueError(f"{name} must be text that UTF-8 can encode, got {found}") from None


def _closed(name: str) -> GroupFailed:
    return GroupFailed.of(f"session {name} is closed", cause="crashed")


async def _logged(closing: Awaitable[None]) -> None:
    try:
        await closing
    except GroupFailed as error:
        logger.warning("a session that nobody wants any more: %s", error)


@contextmanager
def _failures(operation: str) -> Iterator[None]:
    """What user code raises in here is a `GroupFailed`; its traceback is in the log."""
    try:
        yield
    except DeadlineError as error:
        raise GroupFailed.of(str(error), cause="hung") from error
    except GroupFailed as error:  # an environment that knows the cause: a server of its own died
        raise GroupFailed.of(f"{operation}: {error}", cause=error.cause) from error
    # It may raise anything, and SystemExit as well: a process serves many rollouts.
    except (Exception, SystemExit) as error:
        logger.warning("an environment raised in %s", operation, exc_info=error)
        cause = f"{operation}: {type(error).__name__}: {error}"
        raise GroupFailed.of(cause, cause="raised") from error
