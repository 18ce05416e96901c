"""Every wait on a Ray actor: a deadline, and an error that names what was waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.cluster.death import death_of
from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import (
    ActorDied,
    GroupFailed,
    ResultsLost,
    RlhfRayError,
    RunError,
    StateLost,
)

# In which Ray reports the death of a rank whose peers fail with it, also on a busy machine.
DEATH_S = 10.0
# As `StateLost` names it.
OBJECT_STORE = "the object store"


async def within(
    refs: Sequence[Any],
    *,
    timeout_s: float,
    actors: Sequence[str],
    operation: str,
    role: str = "",
    indices: Sequence[int] | None = None,
) -> list[Any]:
    """Wait for one object reference of each actor; the first failure ends the wait for all.

    A rank that dies leaves its peers in a collective that never returns, so waiting for all of them
    before looking at errors would hide the one that matters. Or it has them fail, before Ray
    reports the death: that is waited for a moment.

    Args:
        refs: What is waited for.
        timeout_s: Deadline of all.
        actors: Names for errors, one a reference.
        operation: What they were asked.
        role: Theirs; empty where they are no ranks or replicas.
        indices: Theirs in the role; 0, 1, ... where not given.

    Raises:
        DeadlineError: Not all were there in time; names the actors that were not, and the age.
        ActorDied: One died; names it, operation and age.
        ResultsLost: What one was to read is gone with the node that held it.
        RunError: One raised; names actor, operation and cause.
    """
    started_s = time.monotonic()
    asked = _Asked(operation=operation, names=actors, role=role, indices=indices)
    tasks = [asyncio.ensure_future(_await(ref)) for ref in refs]
    _, pending = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION)
    age_s = time.monotonic() - started_s
    dead_by_s = time.monotonic() + DEATH_S
    # Peers fail one by one, each perhaps before the death is reported that they all suffer from.
    while pending and (errors := _errors(tasks)) and not any(map(_is_cause, errors.values())):
        left_s = dead_by_s - time.monotonic()
        if left_s <= 0:
            break
        _, pending = await asyncio.wait(
            pending, timeout=left_s, return_when=asyncio.FIRST_EXCEPTION
        )
    late = tuple(position for position, task in enumerate(tasks) if task in pending)
    for task in pending:
        task.cancel()
    if errors := _errors(tasks):
        position = min(errors, key=lambda number: not _is_death(errors[number]))
        failed = asked.failed(position, errors[position], age_s)
        if isinstance(failed, ResultsLost):
            failed.late = late
        raise failed from errors[position]
    if late:
        raise asked.late(late, age_s=age_s, timeout_s=timeout_s)
    return [task.result() for task in tasks]


def get(
    refs: Sequence[Any],
    *,
    timeout_s: float,
    actors: Sequence[str],
    operation: str,
    role: str = "",
) -> list[Any]:
    """As `within`, from code that is not asynchronous."""
    started_s = time.monotonic()
    refs = list(refs)
    asked = _Asked(operation=operation, names=actors, role=role)
    try:
        values: list[Any] = ray.get(refs, timeout=timeout_s)
    except GetTimeoutError as error:
        answered, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        late = [position for position, ref in enumerate(refs) if ref not in answered]
        age_s = time.monotonic() - started_s
        raise asked.late(late, age_s=age_s, timeout_s=timeout_s) from error
    except RayError as error:
        age_s = time.monotonic() - started_s
        raise asked.failed(_failed_ref(refs), error, age_s) from error
    return values


def first_ready(refs: Sequence[Any], *, timeout_s: float) -> int:
    """The position of one that is answered or has failed; of the first, if none is in time."""
    ready, _ = ray.wait(list(refs), num_returns=1, timeout=timeout_s, fetch_local=False)
    return refs.index(ready[0]) if ready else 0


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """Whom a wait is for, in the words of its errors."""

    operation: str
    names: Sequence[str]
    role: str = ""
    indices: Sequence[int] | None = None

    def late(self, positions: Sequence[int], *, age_s: float, timeout_s: float) -> DeadlineError:
        """The error of the actors at positions, which have not answered."""
        names = ", ".join(self.names[position] for position in positions)
        error = DeadlineError.of(self.operation, names, age_s=age_s, timeout_s=timeout_s)
        error.late = tuple(positions)
        return error

    def failed(self, position: int, error: BaseException, age_s: float) -> RunError:
        """The error of the actor at a position."""
        cause = _cause(error)
        named = f"{self.operation}: {self.names[position]}"
        if isinstance(error, RayActorError):
            index = position if self.indices is None else self.indices[position]
            return ActorDied.of(
                f"{named} died after {age_s:.0f} s: {death_of(error)}",
                role=self.role,
                index=index,
                operation=self.operation,
                age_s=age_s,
            )
        if isinstance(cause, ActorDied):  # whom the actor itself waited for
            return ActorDied.of(
                f"{named}: {cause}",
                role=cause.role,
                index=cause.index,
                operation=cause.operation,
                age_s=cause.age_s,
            )
        if isinstance(cause, ObjectLostError):
            kind = type(cause).__name__
            gone = f"what it was to read is gone with the node that held it ({kind})"
            return ResultsLost.named(OBJECT_STORE, f"{named}: {gone}")
        if isinstance(cause, StateLost):
            return type(cause).named(cause.role, f"{named}: {cause}")
        if isinstance(cause, GroupFailed):
            return GroupFailed.of(f"{named}: {cause}", cause=cause.cause)
        if isinstance(cause, RlhfRayError):
            return RunError(f"{named}: {cause}")
        return RunError(f"{named} failed after {age_s:.0f} s: {type(cause).__name__}: {cause}")


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _errors(tasks: Sequence[asyncio.Task[Any]]) -> dict[int, BaseException]:
    """Of the tasks that failed, by their positions."""
    found = {}
    for position, task in enumerate(tasks):
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            found[position] = error
    return found


def _cause(error: BaseException) -> BaseException:
    return error.cause if isinstance(error, RayTaskError) else error


def _is_death(error: BaseException) -> bool:
    return isinstance(_cause(error), RayActorError | ActorDied)


def _is_cause(error: BaseException) -> bool:
    """Whether it says what is wrong; anything else may be what a peer's death has led to."""
    return isinstance(_cause(error), RayActorError | RlhfRayError)


def _failed_ref(refs: Sequence[Any]) -> int:
    """The position of the first that failed."""
    ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
    for position, ref in enumerate(refs):
        if ref in ready:
            try:
                ray.get(ref, timeout=0)
            except RayError:
                return position
    return 0
