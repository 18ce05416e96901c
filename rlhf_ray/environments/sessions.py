"""Environments of many rollouts in one process, each by a number of its own."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from rlhf_ray.deadlines import DeadlineError, deadline
from rlhf_ray.environments.protocol import Environment, Step
from rlhf_ray.errors import GroupFailed
from rlhf_ray.types import Prompt

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(eq=False, kw_only=True)
class _Session:
    """One rollout's.

    Attributes:
        rollout: Draw and sample.
        used_s: When it was last asked.
    """

    environment: Environment
    rollout: tuple[int, int]
    used_s: float


class Sessions:
    """Opens, asks and closes environments; for one event loop.

    What the user's code raises, and what it takes too long for, is a `GroupFailed` that can travel
    to another process, whatever the error was.
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
        self._numbers = itertools.count()
        self._open: dict[int, _Session] = {}

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    async def open(self, draw: int, sample: int, prompt: Prompt, seed: int) -> int:
        """Begin the environment of a rollout; its number.

        Another one of the same rollout is closed: that is an attempt which was given up.

        Raises:
            GroupFailed: It could not be made, or its `reset` raised or was late.
        """
        now_s, rollout = self._clock(), (draw, sample)
        await self._close_all(
            number
            for number, session in self._open.items()
            if session.rollout == rollout or now_s - session.used_s > self._idle_s
        )
        number = next(self._numbers)
        with _failures("its beginning"):
            environment = self._make()
        self._open[number] = _Session(environment=environment, rollout=rollout, used_s=now_s)
        try:
            await self._answer(environment.reset(prompt, seed), "reset")
        except BaseException:
            await self._close_all([number])
            raise
        return number

    async def step(self, number: int, answer: str) -> Step:
        """What comes of a turn.

        Raises:
            GroupFailed: It raised, was late, gave no `Step` or messages that cannot be shown,
                or there is no such session any more.
        """
        session = self._open.get(number)
        if session is None:
            raise GroupFailed.of(f"session {number} is closed", cause="crashed")
        session.used_s = self._clock()
        step = await self._answer(session.environment.step(answer), "step")
        if not isinstance(step, Step):
            message = f"step must give a Step, got {type(step).__name__}"
            raise GroupFailed.of(message, cause="raised")
        for message in step.messages:
            self._check(message)
        return step

    async def close(self, number: int) -> None:
        """End a session; nothing where there is none of the number.

        Raises:
            GroupFailed: Its `close` raised or was late; it is gone all the same.
        """
        session = self._open.pop(number, None)
        if session is not None:
            await self._answer(session.environment.close(), "close")

    async def close_all(self) -> None:
        """End all of them, whatever their `close` does."""
        await self._close_all(self._open)

    async def _close_all(self, numbers: Iterable[int]) -> None:
        for number in list(numbers):
            try:
                await self.close(number)
            except GroupFailed as error:
                logger.warning("a session that nobody wants any more: %s", error)

    async def _answer(self, answer: Awaitable[T], operation: str) -> T:
        with _failures(operation):
            async with deadline(self._timeout_s, actor="the environment", operation=operation):
                return await answer

    def _check(self, message: Any) -> None:
        """Refuse what a chat template could not show, or was not checked for."""
        is_message = isinstance(message, Mapping) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if not is_message:
            fault = f"a message must have a role and content, both strings, got {message!r:.80}"
            raise GroupFailed.of(fault, cause="raised")
        if self._roles and message["role"] not in self._roles:
            raise GroupFailed.of(
                f"its messages must have the role {' or '.join(self._roles)}, for which the chat "
                f"template was checked, got {message['role']!r}: name all of them in the "
                "environment's attribute roles, or set environment.template: append",
                cause="raised",
            )


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
