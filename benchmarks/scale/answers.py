"""Actors that are none: they answer at once, and count what the driver sends them."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import cloudpickle

from actors.cluster.role_spec import ActorUsage


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the driver spends.

    Attributes:
        seconds: Of its CPU.
        num_bytes: That it pickles, for actors and Ray's object store.
    """

    seconds: float
    num_bytes: float


# Bytes of an actor's handle: about as many as Ray's.
HANDLE_BYTES = 1_000


class Spent:
    """What this process has spent in the driver's place."""

    def __init__(self) -> None:
        self._elsewhere_s, self._num_bytes = 0.0, 0

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """What is inside would be done by other processes."""
        started_s = time.process_time()
        yield
        self._elsewhere_s += time.process_time() - started_s

    def send(self, value: Any) -> None:
        """Pickle it as Ray does."""
        self._num_bytes += len(cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))

    def so_far(self) -> Cost:
        """All of it."""
        return Cost(seconds=time.process_time() - self._elsewhere_s, num_bytes=self._num_bytes)


SPENT = Spent()


class Answer:
    """What Ray calls a reference: something that is sent as a few bytes, and waited for."""

    numbers = itertools.count()

    def __init__(self, value: Any = None, number: int | None = None) -> None:
        self.value, self.number = value, next(self.numbers) if number is None else number

    @classmethod
    def laid_down(cls, value: Any) -> Answer:
        """As `ray.put`."""
        SPENT.send(value)
        return cls()

    def __reduce__(self) -> Any:
        return Answer, (None, self.number)

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.value


@dataclass(frozen=True, kw_only=True)
class Method:
    """One of an actor: arguments are pickled, and the answer is there at once."""

    answer: Callable[..., Any]
    num_returns: int = 1

    def options(self, *, num_returns: int) -> Method:
        """The same with as many answers."""
        return Method(answer=self.answer, num_returns=num_returns)

    def remote(self, *arguments: Any, **keywords: Any) -> Any:
        """Ask it."""
        SPENT.send((arguments, keywords))
        with SPENT.elsewhere():
            sent = pickle.dumps(self.answer(*arguments), protocol=pickle.HIGHEST_PROTOCOL)
        answer = Answer(pickle.loads(sent))
        if self.num_returns == 1:
            return answer
        return answer, *(Answer() for _ in range(self.num_returns - 1))


class Actor:
    """Has every method; those without an answer of their own say nothing."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self._answers = {"usage": lambda: ActorUsage.of_process({"peak_gb": 1.0}), **answers}

    def __reduce__(self) -> Any:
        return Handle, (bytes(HANDLE_BYTES),)

    def __getattr__(self, name: str) -> Method:
        return Method(answer=self._answers.get(name, lambda *_: None))


class Handle:
    """An actor as another process has it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
