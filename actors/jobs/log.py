"""Following a submitted job: its log as it grows, until it has ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Protocol

import aiohttp

from rlhf_ray.deadlines import in_thread
from rlhf_ray.errors import EXIT_INTERRUPTED, ConfigError, RunError

logger = logging.getLogger(__name__)

# A log that is silent for so long: ask whether the job is still there.
QUIET_S = 10.0
# No word from the cluster for so long: give up following.
LOST_S = 120.0
# A job has ended, and its log cannot be followed to the end: give up, and fetch it as a whole.
REST_S = 10.0
RETRY_S = 1.0
_BROKEN = (RuntimeError, RunError, aiohttp.ClientError, OSError)


class FollowedJobs(Protocol):
    """The part of the job API that following needs."""

    def info(self, job_id: str) -> Any:
        """What is known of a job; None where there is none."""

    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        """Its log from the beginning, in pieces, until it has ended."""

    def get_job_logs(self, job_id: str) -> str:
        """Its log so far, as a whole."""


async def follow(
    jobs: FollowedJobs,
    job_id: str,
    write: Callable[[str], object],
    *,
    quiet_s: float = QUIET_S,
    lost_s: float = LOST_S,
    rest_s: float = REST_S,
) -> Any:
    """Write a job's log as it grows; a connection that breaks is opened again, and nothing doubled.

    Where no connection for logs comes about (some proxies refuse them), the log is written at the
    job's end.

    Returns:
        What is known of the job at its end.

    Raises:
        ConfigError: There is no such job.
        RunError: The cluster does not answer any more.
    """
    num_shown, heard_s = 0, time.monotonic()
    ended_s: float | None = None
    while True:
        fault: Exception | None = None
        position = 0
        try:
            async for piece in _pieces(jobs, job_id, quiet_s):
                write(piece[max(0, num_shown - position) :])
                position += len(piece)
                num_shown, heard_s = max(num_shown, position), time.monotonic()
        except _BROKEN as error:
            fault = error
        try:
            details = await _info(jobs, job_id)
            heard_s = time.monotonic()
        except RunError as error:
            if time.monotonic() - heard_s > lost_s:
                raise RunError(f"{error}; the job may still run") from error
            details = None
        if details is not None and details.status.is_terminal():
            ended_s = ended_s or time.monotonic()
            if fault is not None and time.monotonic() - ended_s > rest_s:
                write(await _rest(jobs, job_id, num_shown, fault))
                fault = None
            if fault is None:
                return details
        await asyncio.sleep(RETRY_S)


async def _rest(jobs: FollowedJobs, job_id: str, num_shown: int, fault: Exception) -> str:
    """What the log has behind what was shown; the job's end does not depend on it."""
    logger.warning("the log of %s could not be followed: %s", job_id, fault or type(fault).__name__)
    try:
        log = await in_thread(
            partial(jobs.get_job_logs, job_id),
            timeout_s=LOST_S,
            actor="the cluster",
            operation=f"the log of {job_id}",
        )
        return log[num_shown:]
    except _BROKEN as error:
        logger.warning("the rest of the log of %s is not to be had: %s", job_id, error)
        return ""


async def _pieces(jobs: FollowedJobs, job_id: str, quiet_s: float) -> AsyncIterator[str]:
    """The log's pieces; ends with the job also where the connection does not say so."""
    pieces = jobs.tail_job_logs(job_id)
    while True:
        task = asyncio.ensure_future(_next(pieces))
        try:
            while not (await asyncio.wait({task}, timeout=quiet_s))[0]:
                if (await _info(jobs, job_id)).status.is_terminal():
                    return
            piece = task.result()
        finally:
            task.cancel()
        if piece is None:
            return
        yield piece


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


async def _info(jobs: FollowedJobs, job_id: str) -> Any:
    """What is known of a job; asking waits, and the log must go on meanwhile."""
    details = await in_thread(
        partial(jobs.info, job_id),
        timeout_s=LOST_S,
        actor="the cluster",
        operation=f"the state of {job_id}",
    )
    if details is None:
        raise ConfigError(f"the cluster knows no job {job_id!r}")
    return details


def exit_status(details: Any) -> int:
    """Of a job that has ended: its driver's own, or what its end amounts to."""
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        return EXIT_INTERRUPTED
    code: int | None = details.driver_exit_code
    if not code:  # it never started
        return 1
    return code if code > 0 else 128 - code  # as a shell has it for a signal
