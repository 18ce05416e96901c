"""Actors that are none: they answer at once, and count what they are sent and what they fetch."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

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


@dataclass(frozen=True, kw_only=True)
class Received:
    """What an actor is given.

    Attributes:
        num_bytes: Of its calls' arguments, and of all that they refer to.
        num_references: To objects in Ray's store. For each the actor asks the driver, who owns it,
            where it is.
    """

    num_bytes: float = 0
    num_references: float = 0

    def __add__(self, other: Received) -> Received:
        """Both together."""
        return Received(
            num_bytes=self.num_bytes + other.num_bytes,
            num_references=self.num_references + other.num_references,
        )

    def since(self, before: Received) -> Received:
        """What is new."""
        return Received(
            num_bytes=self.num_bytes - before.num_bytes,
            num_references=self.num_references - before.num_references,
        )


# Bytes of an actor's handle: about as many as Ray's.
HANDLE_BYTES = 1_000
# What is larger lies in Ray's shared memory (`max_direct_call_object_size`).
SMALL_BYTES = 100 * 1024


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

    def send(self, value: Any) -> Received:
        """Pickle it as Ray does; what its receiver has to fetch beside it is counted as well."""
        Answer.met.clear()
        num_bytes = len(cloudpickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
        self._num_bytes += num_bytes
        received = Received(num_bytes=num_bytes)
        for answer in Answer.met:
            received += answer.fetched
        return received

    def so_far(self) -> Cost:
        """All of it."""
        return Cost(seconds=time.process_time() - self._elsewhere_s, num_bytes=self._num_bytes)


SPENT = Spent()


class Answer:
    """What Ray calls a reference: something that is sent as a few bytes, and waited for.

    Attributes:
        value: What it refers to.
        fetched: What whoever is given it gets by it.
        num_copied: Bytes that are in the reference itself, as with Ray: all of a small object.
        met: References that were pickled since it was last cleared.
    """

    numbers = itertools.count()
    met: ClassVar[list[Answer]] = []

    def __init__(
        self, value: Any = None, number: int | None = None, holds: Received | None = None
    ) -> None:
        self.value, self.number = value, next(self.numbers) if number is None else number
        self.fetched = Received(num_references=1) + (holds or Received())
        self.num_copied = 0

    @classmethod
    def laid_down(cls, value: Any) -> Answer:
        """As `ray.put`."""
        return cls(holds=SPENT.send(value))

    @classmethod
    def stored(cls, value: Any) -> Answer:
        """What an actor leaves in the store: the driver does not pickle it."""
        num_bytes = len(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))
        is_small = num_bytes <= SMALL_BYTES
        answer = cls(value, holds=Received(num_bytes=0 if is_small else num_bytes))
        answer.num_copied = num_bytes if is_small else 0
        return answer

    def __reduce__(self) -> Any:
        self.met.append(self)
        return _of_another, (self.number, bytes(self.num_copied))

    def __await__(self) -> Generator[Any, None, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.value


def _of_another(number: int, copied: bytes) -> Answer:
    return Answer(copied, number)


@dataclass(frozen=True, kw_only=True)
class Method:
    """One of an actor: arguments are pickled, and the answer is there at once."""

    actor: Actor
    answer: Callable[..., Any]
    num_returns: int = 1

    def options(self, *, num_returns: int) -> Method:
        """The same with as many answers."""
        return replace(self, num_returns=num_returns)

    def remote(self, *arguments: Any, **keywords: Any) -> Any:
        """Ask it."""
        self.actor.received += SPENT.send((arguments, keywords))
        with SPENT.elsewhere():
            said = self.answer(*arguments)
            first, others = (said.first, said.others) if isinstance(said, Parts) else (said, ())
            sent = pickle.dumps(first, protocol=pickle.HIGHEST_PROTOCOL)
            left = [Answer.stored(other) for other in others]
        answer = Answer(pickle.loads(sent))
        if self.num_returns == 1:
            return answer
        assert len(left) == self.num_returns - 1
        return answer, *left


@dataclass(frozen=True, kw_only=True)
class Parts:
    """An answer of several: the first comes back, the others stay in Ray's store."""

    first: Any
    others: Sequence[Any]


class Actor:
    """Has every method; those without an answer of their own say nothing.

    Attributes:
        received: So far.
    """

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.received = Received()
        self._answers = {"usage": lambda: ActorUsage.of_process({"peak_gb": 1.0}), **answers}

    def __reduce__(self) -> Any:
        return Handle, (bytes(HANDLE_BYTES),)

    def __getattr__(self, name: str) -> Method:
        return Method(actor=self, answer=self._answers.get(name, lambda *_: None))


class Handle:
    """An actor as another process has it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
