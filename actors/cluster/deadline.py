"""Every wait on a Ray actor: a deadline, and an error that names what was waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rlhf_ray.deadlines import DeadlineError
from rlhf_ray.errors import RlhfRayError, RunError


async def within(
    refs: Sequence[Any], *, timeout_s: float, actors: Sequence[str], operation: str
) -> list[Any]:
    """Wait for one object reference of each actor; the first failure ends the wait for all.

    A rank that dies leaves its peers in a collective that never returns, so waiting for all of them
    before looking at errors would hide the one that matters.

    Raises:
        DeadlineError: Not all were there in time; names the actors that were not, and the age.
        RunError: An actor died or raised; names actor, operation and cause.
    """
    started_s = time.monotonic()
    tasks = [asyncio.ensure_future(_await(ref)) for ref in refs]
    done, pending = await asyncio.wait(
        tasks, timeout=timeout_s, return_when=asyncio.FIRST_EXCEPTION
    )
    for name, task in zip(actors, tasks, strict=True):
        if task in done and (error := task.exception()) is not None:
            _cancel(pending)
            raise _translate(error, name, operation, time.monotonic() - started_s) from error
    if pending:
        late = [name for name, task in zip(actors, tasks, strict=True) if task in pending]
        _cancel(pending)
        age_s = time.monotonic() - started_s
        raise DeadlineError.of(operation, ", ".join(late), age_s=age_s, timeout_s=timeout_s)
    return [task.result() for task in tasks]


def get(
    refs: Sequence[Any], *, timeout_s: float, actors: Sequence[str], operation: str
) -> list[Any]:
    """As `within`, from code that is not asynchronous."""
    started_s = time.monotonic()
    refs = list(refs)
    try:
        values: list[Any] = ray.get(refs, timeout=timeout_s)
    except GetTimeoutError as error:
        answered, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        late = [name for name, ref in zip(actors, refs, strict=True) if ref not in answered]
        age_s = time.monotonic() - started_s
        raise DeadlineError.of(
            operation, ", ".join(late), age_s=age_s, timeout_s=timeout_s
        ) from error
    except RayError as error:
        names = ", ".join(actors)
        raise _translate(error, names, operation, time.monotonic() - started_s) from error
    return values


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _cancel(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()


def _translate(error: BaseException, actor: str, operation: str, age_s: float) -> RunError:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(error, RayActorError):
        return RunError(f"{operation}: {actor} died after {age_s:.0f} s: {_first_line(error)}")
    if isinstance(cause, RlhfRayError):
        return RunError(f"{operation}: {actor}: {cause}")
    return RunError(
        f"{operation}: {actor} failed after {age_s:.0f} s: {type(cause).__name__}: {cause}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
